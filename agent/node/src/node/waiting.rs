//! Commands that are answered once hooks are attached and what is open is followed.

use std::mem;

use tcptracer::bpf::Demand;

use super::handle::{CannotAttach, Command, Refusal};
use crate::filter::Matcher;

/// The commands that wait, in the order in which they came.
#[derive(Default)]
pub struct Waiting(Vec<Waiter>);

struct Waiter {
    /// The hooks that the command requires.
    demand: Demand,
    /// As of so many growths of the filter maps, what is open has to be followed.
    growths: u64,
    command: Command,
}

impl Waiting {
    /// Adds a command that requires these hooks.
    pub fn push(&mut self, demand: Demand, command: Command) {
        self.0.push(Waiter {
            demand,
            growths: 0,
            command,
        });
    }

    /// What the last one is about is in the filter maps since they have grown so often.
    pub fn set_growths(&mut self, growths: u64) {
        if let Some(last) = self.0.last_mut() {
            last.growths = growths;
        }
    }

    /// The hooks that are needed.
    pub fn demands(&self) -> impl Iterator<Item = Demand> {
        self.0.iter().map(|waiter| waiter.demand)
    }

    /// The growths as of which what is open is needed.
    pub fn growths(&self) -> Option<u64> {
        self.0.iter().map(|waiter| waiter.growths).max()
    }

    /// Whose connections they are about.
    pub fn matchers(&self) -> impl Iterator<Item = &Matcher> {
        self.0.iter().filter_map(|waiter| match &waiter.command {
            Command::Subscribe { matcher, .. } | Command::Follow { matcher, .. } => Some(matcher),
            _ => None,
        })
    }

    /// Takes those out for whom all is there.
    pub fn take_ready(&mut self, is_there: impl Fn(Demand, u64) -> bool) -> Vec<Command> {
        let ready = self
            .0
            .extract_if(.., |waiter| is_there(waiter.demand, waiter.growths));
        ready.map(|waiter| waiter.command).collect()
    }

    /// Takes the subscription of this id out.
    pub fn take(&mut self, subscription: &str) -> Option<Command> {
        let at = self.0.iter().position(|waiter| match &waiter.command {
            Command::Subscribe { id, .. } => id.as_deref() == Some(subscription),
            _ => false,
        })?;
        Some(self.0.remove(at).command)
    }

    /// Tells all of them that the hooks cannot be attached.
    pub fn refuse(&mut self, why: &str) {
        for waiter in mem::take(&mut self.0) {
            let why = CannotAttach(why.into());
            // Who asked and is gone does not need the answer.
            match waiter.command {
                Command::Subscribe { reply, .. } => {
                    let _ = reply.send(Err(Refusal::CannotAttach(why)));
                }
                Command::Follow { reply, .. } => {
                    let _ = reply.send(Err(why));
                }
                Command::End { .. } | Command::Name { .. } | Command::Report(_) => {}
            }
        }
    }
}
