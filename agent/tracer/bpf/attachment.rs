/*!
Which hooks are attached.

The ring thread owns the links. It attaches by itself, and leaves it to a thread made for that to detach: the kernel
waits there for programs that may still run, for longer than the ring thread may stay away from the ring.

A socket that is open or may be connected again while nothing is attached keeps what was known of its connection. So ids
and times are the same when the hooks are attached again.
*/

use std::mem::{self, MaybeUninit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use libbpf_rs::{ErrorKind, Link};
use rustix::thread::{MembarrierCommand, membarrier};
use tcptracer_event::Event;

use super::config::{Config, Demand};
use super::control::Waker;
use super::hooks::{Group, HOOKS, Hook, Place};
use super::load::{attach_iterator, iterate, load_again, snapshot};
use super::maps::{clear, empty};
use super::plan::{Plan, When};
use super::programs::Program;
use super::seeder::Seeder;
use super::skel::TcptracerSkel;

/// The hooks that are attached now.
pub struct Attachment {
    plan: Plan,
    programs: Arc<[Program]>,
    /// What is attached as long as it is asked for, the first to be attached first.
    hooks: Vec<&'static Hook>,
    /// Whatever is asked for.
    _always: Vec<Link>,
    asked: Links,
    seeder: Seeder,
    leaving: Option<Leaving>,
    /// What is open has to be looked for, once the hooks are attached.
    is_paused: bool,
    /// The tables hold what was before the hooks were detached.
    stale: bool,
}

/// Links, in the order in which they were attached.
type Links = Vec<(Place, Link)>;

/// What is being detached.
struct Leaving {
    /// Returns what it was kept from detaching. Without it all is detached.
    thread: Option<JoinHandle<Links>>,
    /// Has it stop.
    keep: Arc<AtomicBool>,
    /// What the first of them to be wanted again is for.
    demand: Demand,
}

impl Leaving {
    fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for it. The thread does not panic.
    fn kept(self) -> Links {
        let kept = self.thread.and_then(|thread| thread.join().ok());
        kept.unwrap_or_default()
    }
}

/// What the snapshot has found, and how many of its records could not be decoded.
pub type Found = (Vec<Event>, u64);

impl Attachment {
    /// Attaches what is asked for whatever the demand.
    pub fn new(
        skel: &TcptracerSkel<'_>,
        plan: Plan,
        config: &Config,
        programs: Arc<[Program]>,
        seeder: Seeder,
    ) -> Result<Self> {
        seeder.stop();
        let hooks = HOOKS.iter().rev();
        let hooks = hooks.filter(|hook| plan.when(hook.group, config) == When::Asked);
        let (always, hooks): (Vec<_>, Vec<_>) =
            hooks.partition(|hook| hook.group.demand() == Demand::Nothing);
        let mut this = Self {
            plan,
            programs,
            hooks,
            _always: Vec::new(),
            asked: Vec::new(),
            seeder,
            leaving: None,
            is_paused: true,
            stale: false,
        };
        let always = always.into_iter().map(|hook| this.attach(skel, hook));
        this._always = always.collect::<Result<_>>()?;
        Ok(this)
    }

    /// Whether connections are followed.
    pub fn is_attached(&self) -> bool {
        !self.is_paused
    }

    fn has(&self, place: Place) -> bool {
        self.asked.iter().any(|(attached, _)| *attached == place)
    }

    fn attach(&self, skel: &TcptracerSkel<'_>, hook: &Hook) -> Result<Link> {
        let link = (hook.loaded)(&skel.progs)
            .attach()
            .with_context(|| format!("cannot attach to {}", hook.name))?;
        self.note(hook.place, true);
        Ok(link)
    }

    fn note(&self, place: Place, attached: bool) {
        self.programs_at(place)
            .for_each(|program| program.set_attached(attached));
    }

    fn programs_at(&self, place: Place) -> impl Iterator<Item = &Program> {
        self.programs.iter().filter(move |p| p.place() == place)
    }

    /// Takes steps towards what is asked for. `None`: call this again soon; the waker tells when it is worth it.
    pub fn follow(
        &mut self,
        skel: &mut TcptracerSkel<'_>,
        demand: Demand,
        waker: &Waker,
    ) -> Option<Result<Found>> {
        loop {
            if let Some(leaving) = self.leaving.take() {
                if !leaving.is_over() {
                    leaving
                        .keep
                        .store(demand >= leaving.demand, Ordering::Relaxed);
                    self.leaving = Some(leaving);
                    return None;
                }
                if let Err(e) = self.has_left(skel, leaving) {
                    return Some(Err(e));
                }
            }
            if !self.leave(skel, demand, waker) {
                return Some(self.attach_asked(skel, demand));
            }
        }
    }

    /// Attaches what is missing, the state machine last: whatever it reports, the other hooks see. Then seeds the state
    /// with what is open already. What fails leaves nothing attached that was not before.
    fn attach_asked(&mut self, skel: &mut TcptracerSkel<'_>, demand: Demand) -> Result<Found> {
        let before = self.asked.len();
        let begins = demand > Demand::Nothing && self.is_paused;
        if begins {
            if self.stale {
                self.forget(skel)?;
            }
            for map in [&skel.maps.listeners, &skel.maps.seen_listeners] {
                empty(map).context("cannot empty the table of listeners")?;
            }
        }
        let tried = self.try_attaching(skel, demand).and_then(|()| {
            if !begins {
                return Ok((Vec::new(), 0));
            }
            set_paused(skel, false);
            let growths = self.seeder.growths();
            let found = match self.plan.snapshot {
                true => snapshot(skel)?,
                false => (Vec::new(), 0),
            };
            let iterator = self.plan.snapshot.then_some(Place::SeedConnections.hook());
            let iterator = iterator
                .map(|hook| attach_iterator(skel, hook))
                .transpose()?;
            self.seeder.start(iterator, growths)?;
            self.is_paused = false;
            Ok(found)
        });
        if tried.is_err() {
            let added = self.asked.split_off(before);
            added.iter().for_each(|(place, _)| self.note(*place, false));
            if !self.has(Place::SetState) {
                self.pause(skel);
            }
        }
        tried
    }

    fn try_attaching(&mut self, skel: &TcptracerSkel<'_>, demand: Demand) -> Result<()> {
        match self.attach_missing(skel, skel, demand) {
            Err(e) if is_spent(&e) => {}
            attached => return attached,
        }
        let trampolines: Vec<_> = self.missing(demand).filter(|h| h.is_trampoline()).collect();
        let mut object = MaybeUninit::uninit();
        let trampolines = load_again(skel, &trampolines, &mut object)?;
        self.attach_missing(skel, &trampolines, demand)
    }

    fn missing(&self, demand: Demand) -> impl Iterator<Item = &'static Hook> {
        let hooks = self.hooks.iter().copied();
        hooks.filter(move |hook| hook.group.demand() <= demand && !self.has(hook.place))
    }

    fn attach_missing(
        &mut self,
        skel: &TcptracerSkel<'_>,
        trampolines: &TcptracerSkel<'_>,
        demand: Demand,
    ) -> Result<()> {
        for hook in self.missing(demand).collect::<Vec<_>>() {
            let loaded = match hook.is_trampoline() {
                true => trampolines,
                false => skel,
            };
            let link = self.attach(loaded, hook)?;
            self.asked.push((hook.place, link));
        }
        Ok(())
    }

    /// Attaches a hook that is attached once it is needed.
    pub fn attach_needed(&mut self, skel: &TcptracerSkel<'_>, place: Place) -> Result<()> {
        if self.has(place) {
            return Ok(());
        }
        let link = self.attach(skel, place.hook()).inspect_err(|e| {
            self.programs_at(place)
                .for_each(|program| program.set_failed(format!("{e:#}")));
        })?;
        self.asked.push((place, link));
        Ok(())
    }

    /// Begins to detach what nobody asks for. Whether there is any.
    fn leave(&mut self, skel: &mut TcptracerSkel<'_>, demand: Demand, waker: &Waker) -> bool {
        let (kept, left): (Links, Links) = mem::take(&mut self.asked)
            .into_iter()
            .partition(|(place, _)| place.hook().group.demand() <= demand);
        self.asked = kept;
        let demands = left.iter().map(|(place, _)| place.hook().group.demand());
        let Some(demand) = demands.min() else {
            return false;
        };
        left.iter().for_each(|(place, _)| self.note(*place, false));
        if left.iter().any(|(place, _)| *place == Place::SetState) {
            self.pause(skel);
        }
        let keep = Arc::new(AtomicBool::new(false));
        let (is_kept, waker) = (Arc::clone(&keep), waker.clone());
        let detach = move || {
            let left = detach(left, &is_kept);
            waker.wake();
            left
        };
        // If there can be no thread, the closure is dropped here, and with it the links.
        let thread = thread::Builder::new().name("tt-detach".into());
        self.leaving = Some(Leaving {
            thread: thread.spawn(detach).ok(),
            keep,
            demand,
        });
        true
    }

    /// What the tables hold holds no more.
    fn pause(&mut self, skel: &mut TcptracerSkel<'_>) {
        set_paused(skel, true);
        self.is_paused = true;
        self.stale = true;
        self.seeder.stop();
    }

    /// What was to be detached is, or is wanted again.
    fn has_left(&mut self, skel: &TcptracerSkel<'_>, leaving: Leaving) -> Result<()> {
        let kept = leaving.kept();
        kept.iter().for_each(|(place, _)| self.note(*place, true));
        self.asked.extend(kept);
        // The state machine has gone on all the while.
        self.stale &= !self.has(Place::SetState);
        match self.stale {
            true => self.forget(skel),
            false => Ok(()),
        }
    }

    /// Empties the tables. What was known of the connection of a socket stays with the socket.
    fn forget(&mut self, skel: &TcptracerSkel<'_>) -> Result<()> {
        let remembered = match self.plan.memory {
            true => iterate(skel, Group::Memory).map(drop),
            false => Ok(()),
        };
        let maps = &skel.maps;
        clear(&maps.sets).context("cannot empty the table of connections")?;
        for map in [&maps.conns, &maps.connecting] {
            empty(map).context("cannot empty a table")?;
        }
        self.stale = false;
        // What could not be remembered gets a new id.
        remembered.context("cannot remember what is open")
    }
}

/// The last to be attached first: the state machine, without which the others report nothing. Returns what is to be kept
/// after all. The programs that had begun have ended.
fn detach(mut links: Links, keep: &AtomicBool) -> Links {
    while !keep.load(Ordering::Relaxed)
        && let Some((_, link)) = links.pop()
    {
        drop(link);
    }
    // Where the kernel refuses it (nohz_full), they end while the others are detached.
    let _ = membarrier(MembarrierCommand::Global);
    links
}

/// Before 5.13 the kernel lets a program be attached to a trampoline only once.
fn is_spent(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<libbpf_rs::Error>();
    error.is_some_and(|e| e.kind() == ErrorKind::NotFound)
}

/// Tells the programs whether hooks are missing.
fn set_paused(skel: &mut TcptracerSkel<'_>, paused: bool) {
    if let Some(data) = skel.maps.data_data.as_deref_mut() {
        data.tt_paused = paused.into();
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Some(leaving) = self.leaving.take() {
            self.asked.extend(leaving.kept());
        }
        // The state machine first.
        while let Some(link) = self.asked.pop() {
            drop(link);
        }
    }
}
