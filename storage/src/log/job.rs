//! What the writer is asked to do.

use std::io;

use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};
use tokio::sync::oneshot;

use super::record::{FRAME_BYTES, LogEntry, Vote};

/// One change to the log.
#[derive(Debug)]
pub(crate) enum Op {
    Vote(Vote),
    Append(Vec<LogEntry>),
    /// Removes the entries from this index on.
    Truncate(u64),
    /// Gives up the entries up to this one.
    Purge(Position),
    /// Gives up everything of the group but the vote, and says where its log ended.
    Leave(Option<Position>),
    /// Notes that files are about to be removed.
    ForgetFiles(StateMachineId),
    /// Ends the log with a witness that everything before was synced.
    Close,
}

/// Called once with what became of a job.
pub(crate) type Completion = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Changes to one group that become durable together; but see [`Job::split_off`].
pub(crate) struct Job {
    pub group: GroupId,
    pub ops: Vec<Op>,
    pub completion: Completion,
}

impl Job {
    /// Makes a job, and a receiver for what becomes of it.
    pub fn new(group: GroupId, ops: Vec<Op>) -> (Self, oneshot::Receiver<io::Result<()>>) {
        let (tell, told) = oneshot::channel();
        let completion = Box::new(move |result| drop(tell.send(result)));
        (Self { group, ops, completion }, told)
    }

    /// Splits off the entries that no longer begin within so many bytes, where the job appends entries and nothing
    /// else. The completion goes with them, because they become durable last. What is durable in between is the
    /// beginning of an append that nobody was told of, as a crash may leave it.
    pub fn split_off(&mut self, bytes: usize) -> Option<Self> {
        let [Op::Append(entries)] = &mut self.ops[..] else { return None };
        let mut before = 0;
        let fitting = entries.iter().take_while(|entry| {
            let begins_within = before < bytes;
            before += FRAME_BYTES + entry.payload_len();
            begins_within
        });
        let fitting = fitting.count();
        if fitting == entries.len() {
            return None;
        }
        let ops = vec![Op::Append(entries.split_off(fitting))];
        let completion = std::mem::replace(&mut self.completion, Box::new(drop));
        Some(Self { group: self.group, ops, completion })
    }
}
