/*!
Which hooks are attached.

The ring thread owns the links. It attaches by itself, and leaves it to a thread made for that to detach: the kernel
waits there for programs that may still run, for longer than the ring thread may stay away from the ring.

A socket that is open or may be connected again while nothing is attached keeps what was known of its connection. So ids
and times are the same when the hooks are attached again.
*/

use std::mem;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use libbpf_rs::{Link, MapCore, MapFlags, MapMut};
use rustix::thread::{MembarrierCommand, membarrier};
use tcptracer_event::Event;

use super::config::{Config, Demand};
use super::control::Waker;
use super::hooks::{Group, HOOKS, Hook, Place};
use super::load::{iterate, snapshot};
use super::plan::{Plan, When};
use super::programs::Program;
use super::skel::TcptracerSkel;

/// Entries to delete with one system call.
const BATCH: u32 = 1024;

/// The hooks that are attached now.
pub struct Attachment {
    plan: Plan,
    programs: Arc<[Program]>,
    /// What is attached as long as it is asked for, the first to be attached first.
    hooks: Vec<&'static Hook>,
    /// Whatever is asked for.
    _always: Vec<Link>,
    /// In the order in which they were attached.
    asked: Vec<(Place, Link)>,
    leaving: Option<Leaving>,
}

/// What is being detached.
struct Leaving {
    thread: JoinHandle<()>,
    /// Nothing follows connections any more once that is done.
    forget: bool,
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
    ) -> Result<Self> {
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
            leaving: None,
        };
        let always = always.into_iter().map(|hook| this.attach(skel, hook));
        this._always = always.collect::<Result<_>>()?;
        Ok(this)
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
        for program in self.programs.iter().filter(|p| p.place() == place) {
            program.set_attached(attached);
        }
    }

    /// Takes steps towards what is asked for. `None`: once the waker has been called, call this again.
    pub fn follow(
        &mut self,
        skel: &TcptracerSkel<'_>,
        demand: Demand,
        waker: &Waker,
    ) -> Option<Result<Found>> {
        loop {
            if let Some(leaving) = self.leaving.take() {
                if !leaving.thread.is_finished() {
                    self.leaving = Some(leaving);
                    return None;
                }
                if let Err(e) = self.has_left(skel, leaving) {
                    return Some(Err(e));
                }
            }
            if !self.leave(demand, waker) {
                return Some(self.attach_asked(skel, demand));
            }
        }
    }

    /// Attaches what is missing, the state machine last: whatever it reports, the other hooks see. Then seeds the state
    /// with what is open already. What fails leaves nothing attached that was not before.
    fn attach_asked(&mut self, skel: &TcptracerSkel<'_>, demand: Demand) -> Result<Found> {
        let begins = demand > Demand::Nothing && !self.has(Place::SetState);
        let before = self.asked.len();
        let tried = self
            .try_attaching(skel, demand)
            .and_then(|()| match begins {
                true if self.plan.snapshot => snapshot(skel),
                _ => Ok((Vec::new(), 0)),
            });
        if tried.is_err() {
            let added = self.asked.split_off(before);
            added.iter().for_each(|(place, _)| self.note(*place, false));
        }
        tried
    }

    fn try_attaching(&mut self, skel: &TcptracerSkel<'_>, demand: Demand) -> Result<()> {
        for at in 0..self.hooks.len() {
            let hook = self.hooks[at];
            if hook.group.demand() <= demand && !self.has(hook.place) {
                let link = self.attach(skel, hook)?;
                self.asked.push((hook.place, link));
            }
        }
        Ok(())
    }

    /// Attaches a hook that is attached once it is needed.
    pub fn attach_needed(&mut self, skel: &TcptracerSkel<'_>, place: Place) -> Result<()> {
        if self.has(place) {
            return Ok(());
        }
        let link = self.attach(skel, place.hook()).inspect_err(|e| {
            for program in self.programs.iter().filter(|p| p.place() == place) {
                program.set_failed(format!("{e:#}"));
            }
        })?;
        self.asked.push((place, link));
        Ok(())
    }

    /// Begins to detach what nobody asks for. Whether there is any.
    fn leave(&mut self, demand: Demand, waker: &Waker) -> bool {
        let (kept, mut left): (Vec<_>, Vec<_>) = mem::take(&mut self.asked)
            .into_iter()
            .partition(|(place, _)| place.hook().group.demand() <= demand);
        self.asked = kept;
        if left.is_empty() {
            return false;
        }
        left.iter().for_each(|(place, _)| self.note(*place, false));
        let forget = left.iter().any(|(place, _)| *place == Place::SetState);
        let waker = waker.clone();
        let detach = move || {
            // The last to be attached first: the state machine, without which the others report nothing.
            while let Some(link) = left.pop() {
                drop(link);
            }
            // Programs that had begun have ended after that. Kernels that refuse it (nohz_full) have them end while the
            // links of trampolines are detached.
            let _ = membarrier(MembarrierCommand::Global);
            waker.wake();
        };
        match thread::Builder::new()
            .name("tt-detach".into())
            .spawn(detach)
        {
            Ok(thread) => self.leaving = Some(Leaving { thread, forget }),
            // Without a thread they have been detached here, with the closure.
            Err(_) => {}
        }
        true
    }

    /// What was to be detached is. What a connection of a socket is remembered with stays with the socket.
    fn has_left(&mut self, skel: &TcptracerSkel<'_>, leaving: Leaving) -> Result<()> {
        // It cannot panic.
        let _ = leaving.thread.join();
        if !leaving.forget {
            return Ok(());
        }
        if self.plan.memory {
            iterate(skel, Group::Memory).context("cannot remember what is open")?;
        }
        let maps = &skel.maps;
        for map in [
            &maps.conns,
            &maps.listeners,
            &maps.seen_listeners,
            &maps.connecting,
        ] {
            empty(map).context("cannot empty a table")?;
        }
        Ok(())
    }
}

fn empty(map: &MapMut<'_>) -> libbpf_rs::Result<()> {
    let entries = map.lookup_and_delete_batch(BATCH, MapFlags::ANY, MapFlags::ANY)?;
    entries.for_each(drop);
    Ok(())
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Some(leaving) = self.leaving.take() {
            let _ = leaving.thread.join();
        }
        // The state machine first.
        while let Some(link) = self.asked.pop() {
            drop(link);
        }
    }
}
