//! What all measurements need: the load, the node it is on, and the processes in which our tracer runs.

use std::ffi::OsStr;

use anyhow::Result;

use crate::agent::Agent;
use crate::interrupt::Interrupt;
use crate::load::Load;
use crate::node::Node;
use crate::printer::{Keep, Printer};
use crate::tracer::TracerProcess;

/// In the order in which it ends: what is in the node's cgroups before these.
pub struct Stage {
    pub load: Load,
    pub processes: Vec<TracerProcess>,
    pub node: Node,
    /// On which everything but the load runs.
    pub tool_cpu: usize,
    pub interrupt: Interrupt,
}

impl Stage {
    pub fn new(load_cpu: usize, tool_cpu: usize) -> Result<Self> {
        let interrupt = Interrupt::watch()?;
        let node = Node::new()?;
        Ok(Self {
            load: Load::start(load_cpu, node.cgroup())?,
            processes: Vec::new(),
            node,
            tool_cpu,
            interrupt,
        })
    }

    /// Returns the index of the new process.
    pub fn add_process(&mut self, binary: &OsStr) -> Result<usize> {
        self.processes
            .push(TracerProcess::spawn(binary, self.tool_cpu)?);
        Ok(self.processes.len() - 1)
    }

    pub fn agent(&self) -> Result<Agent> {
        Agent::start(&self.node, self.tool_cpu, None)
    }

    /// Starts so many plugins that show a namespace, and waits until the agent serves all of them. The agent must have no subscriber yet.
    pub fn plugins(
        &self,
        count: u32,
        agent: &Agent,
        namespace: &str,
        keep: Keep,
    ) -> Result<Vec<Printer>> {
        let plugins = (0..count)
            .map(|_| Printer::plugin(&agent.grpc, namespace, self.tool_cpu, keep, None))
            .collect::<Result<_>>()?;
        agent.wait_for_subscribers(count)?;
        Ok(plugins)
    }
}
