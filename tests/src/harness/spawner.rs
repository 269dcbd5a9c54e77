//! Starting children that do not outlive this process, however it ends.
//!
//! The kernel can send a child a signal when its parent dies, but 'parent' means the *thread* that
//! started it, and a test's thread ends with the test while a shared server goes on. So one thread
//! that lives as long as the process starts all children.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};

type Job = (Command, Sender<io::Result<Child>>);

static SPAWNER: LazyLock<Sender<Job>> = LazyLock::new(|| {
    let (jobs, inbox) = channel::<Job>();
    std::thread::spawn(move || {
        for (mut command, answer) in inbox {
            // A caller that has gone needs no answer.
            let _ = answer.send(command.spawn());
        }
    });
    jobs
});

/// Starts `command`; the child is killed when this process ends.
pub(crate) fn spawn(mut command: Command) -> io::Result<Child> {
    // SAFETY: prctl is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let (answer, outcome) = channel();
    SPAWNER.send((command, answer)).expect("the spawner lives as long as the process");
    outcome.recv().expect("the spawner answers")
}
