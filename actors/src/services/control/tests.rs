//! Telling a tenant's group what group 0 says, over a log that goes wrong.

use std::collections::VecDeque;
use std::future;

use tokio::sync::watch;

use super::*;
use crate::cluster::routing::RouterSources;
use crate::command::{Envelope, SetTenant};
use crate::domain::ids::RaftId;
use crate::domain::time::Timestamp;
use crate::domain::voters::Voters;
use crate::ports::{
    BoxFuture, GroupLead, GroupStatus, Leadership, LogStatus, Proposals, ProposeError,
};
use crate::services::puppet::puppet;
use crate::state::system::tests as samples;
use crate::testing::{NoPeers, fixed_seams};

const TERM: u64 = 7;
const DEADLINE: Duration = Duration::from_secs(5);

type Answer = Result<Outcome, ProposeError>;

/// What is proposed, and what comes of it: `after` happens to group 0 before the answer.
struct Scripted {
    state: Arc<Mutex<SystemState>>,
    answers: Mutex<VecDeque<Answer>>,
    proposed: Mutex<Vec<(Option<u64>, TenantCommand)>>,
    after: fn(&mut SystemState),
    is_cut_off: bool,
    leadership: watch::Sender<Leadership>,
}

impl Proposals for Scripted {
    fn propose(&self, _: GroupId, envelope: Envelope) -> BoxFuture<'_, Answer> {
        let Command::Tenant { command, .. } = envelope.command else {
            return Box::pin(future::ready(Ok(Outcome::Done)));
        };
        self.proposed.lock().unwrap().push((envelope.term, command));
        (self.after)(&mut self.state.lock().unwrap());
        let answer = self.answers.lock().unwrap().pop_front().unwrap_or(Ok(Outcome::Done));
        Box::pin(future::ready(answer))
    }

    fn read_index(&self, _: GroupId) -> BoxFuture<'_, Result<(), ProposeError>> {
        let index = if self.is_cut_off { Err(ProposeError::NoLeader) } else { Ok(()) };
        Box::pin(future::ready(index))
    }

    fn leadership(&self, _: GroupId) -> Option<watch::Receiver<Leadership>> {
        Some(self.leadership.subscribe())
    }

    fn leads(&self, _: GroupId) -> Option<u64> {
        Some(TERM)
    }
}

/// Nothing is known of any group.
struct NoGroups;

impl LogStatus for NoGroups {
    fn groups(&self) -> Vec<GroupStatus> {
        Vec::new()
    }

    fn last_index(&self, _: GroupId) -> Option<u64> {
        None
    }

    fn led(&self) -> Vec<GroupLead> {
        Vec::new()
    }

    fn leads_changed(&self) -> watch::Receiver<()> {
        watch::Sender::default().subscribe()
    }

    fn voters(&self, _: GroupId) -> Option<Voters> {
        None
    }
}

/// A control plane with one tenant, which its group has not been told of.
async fn control(
    answers: impl IntoIterator<Item = Answer>,
    after: fn(&mut SystemState),
    is_cut_off: bool,
) -> (Control, Arc<Scripted>) {
    let state = Arc::new(Mutex::new(samples::with_a_tenant()));
    let here = Leadership { term: TERM, leader: Some(RaftId(1)), here: true };
    let log = Arc::new(Scripted {
        state: Arc::clone(&state),
        answers: Mutex::new(answers.into_iter().collect()),
        proposed: Mutex::default(),
        after,
        is_cut_off,
        leadership: watch::Sender::new(here),
    });
    let router = Router::new(RouterSources {
        status: Arc::new(NoGroups),
        log: Arc::<Scripted>::clone(&log),
        peers: Arc::new(NoPeers),
        hints: watch::Sender::default().subscribe(),
        election_timeout: Duration::from_secs(1),
        raft_id: RaftId(1),
    });
    // Shows a state that the test changes.
    let actor = puppet(state, |state: &mut Arc<Mutex<SystemState>>, message| {
        if let ControlMessage::Read(read) = message {
            read(&state.lock().unwrap());
        }
    });
    let actor = actor.await;
    let (seams, proposals) = (fixed_seams(Timestamp(0)), Arc::<Scripted>::clone(&log));
    let (tenant_turns, queue) = (Arc::default(), Arc::default());
    (Control::new(actor, proposals, router, seams, tenant_turns, queue), log)
}

async fn sync(control: &Control) -> Result<(), CallError> {
    control.sync_tenant(samples::TENANT, Some(1), Instant::now() + DEADLINE).await
}

/// The versions that were proposed, and whether they delete the tenant.
fn versions(log: &Scripted) -> Vec<(u64, bool)> {
    let proposed = log.proposed.lock().unwrap();
    let version = |(term, command): &(Option<u64>, TenantCommand)| match command {
        TenantCommand::Set(SetTenant { version, record }) => {
            assert_eq!(*term, Some(TERM), "counts in no other term of the group");
            (*version, record.is_none())
        }
        other => panic!("{other:?}"),
    };
    proposed.iter().map(version).collect()
}

fn unknown() -> Answer {
    Err(ProposeError::Unknown("cut off".into()))
}

#[tokio::test(start_paused = true)]
async fn what_has_been_deleted_meanwhile_is_not_proposed_again() {
    let delete = |state: &mut SystemState| samples::delete(state);
    let (control, log) = control([unknown()], delete, false).await;
    sync(&control).await.unwrap();
    assert_eq!(versions(&log), [(1, false), (2, true)]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_cannot_ask_group_0_proposes_nothing() {
    let (control, log) = control([], |_| (), true).await;
    assert!(matches!(sync(&control).await, Err(CallError::NoLeader)));
    assert_eq!(versions(&log), []);
}

#[tokio::test(start_paused = true)]
async fn what_did_nothing_in_a_later_term_is_proposed_again() {
    let (control, log) = control([Ok(Outcome::Ignored)], |_| (), false).await;
    sync(&control).await.unwrap();
    assert_eq!(versions(&log), [(1, false), (1, false)]);
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_does_not_deny_what_an_earlier_attempt_may_have_done() {
    let full = || Err(ProposeError::DiskFull);
    let (first, _) = control([full()], |_| (), false).await;
    assert!(matches!(sync(&first).await, Err(CallError::DiskFull)));
    let (second, _) = control([unknown(), full()], |_| (), false).await;
    assert!(matches!(sync(&second).await, Err(CallError::Unknown { .. })));
}
