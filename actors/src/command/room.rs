//! Which commands make room on a disk that is full.

use super::{Command, Envelope, MoveTenant, SetTenant, SystemCommand, TenantCommand, UpdateTenant};
use crate::domain::tenant::TenantChange;

impl Envelope {
    /// Tells whether the command lets go of data, or ends in that: the deletion of a tenant, a step of a move, a move
    /// that is called off. Refused for lack of room these would keep the room for ever. They are small whatever they
    /// are about, so that a full disk takes them from what the log has in reserve.
    ///
    /// What is confirmed or stepped on for such a command is among them. What is copied in a move is not, nor is the
    /// deletion of a workflow: it makes no file shorter, and any tenant could use up the reserve with it.
    pub fn makes_room(&self) -> bool {
        match &self.command {
            Command::System(command) => match command {
                SystemCommand::DeleteTenant(_)
                | SystemCommand::ConfirmTenant(_)
                | SystemCommand::StepMove(_) => true,
                SystemCommand::UpdateTenant(UpdateTenant { change, .. }) => is_of_region(change),
                _ => false,
            },
            Command::Tenant { command, .. } => match command {
                TenantCommand::Set(SetTenant { record, .. }) => record.is_none(),
                TenantCommand::Move(MoveTenant::TakeIn(_)) => false,
                TenantCommand::Move(_) => true,
                _ => false,
            },
        }
    }

    /// Tells whether the command is a piece of a tenant that is copied here, which can be done without.
    pub const fn is_of_copy(&self) -> bool {
        let Command::Tenant { command, .. } = &self.command else { return false };
        matches!(command, TenantCommand::Move(MoveTenant::TakeIn(_)))
    }
}

/// Tells whether a change names a region and nothing else: it calls a move off, or moves the tenant away. The latter
/// makes room only where the leader of the source has some: what is copied has to be in files first, and where it cannot
/// be written there the move is called off at once.
fn is_of_region(change: &TenantChange) -> bool {
    let region = change.region.clone();
    region.is_some() && *change == TenantChange { region, ..TenantChange::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{DeleteTenant, DeleteWorkflow, MoveStep, MovedPiece, StepMove};
    use crate::domain::ids::Epoch;
    use crate::testing::{envelope, tenant, tenant_envelope, tenant_record, text_envelope};

    fn system(command: SystemCommand) -> bool {
        envelope(Command::System(command)).makes_room()
    }

    fn own(command: TenantCommand) -> bool {
        tenant_envelope(tenant(1), command).makes_room()
    }

    fn update(change: TenantChange) -> SystemCommand {
        SystemCommand::UpdateTenant(UpdateTenant { tenant: tenant(1), change, if_version: None })
    }

    #[test]
    fn deletions_and_what_ends_a_move_make_room() {
        assert!(system(SystemCommand::DeleteTenant(DeleteTenant {
            tenant: tenant(1),
            if_version: None
        })));
        let (tenant, epoch) = (tenant(1), Epoch(2));
        for step in [MoveStep::Retry, MoveStep::Commit, MoveStep::Abort, MoveStep::Finish] {
            assert!(system(SystemCommand::StepMove(StepMove { tenant, epoch, step })));
        }
        assert!(own(TenantCommand::Set(SetTenant { version: 2, record: None })));
        for step in [MoveTenant::Freeze, MoveTenant::Thaw, MoveTenant::Leave, MoveTenant::Discard] {
            assert!(own(TenantCommand::Move(step)));
        }
        let region = Some("eu".into());
        let moved = TenantChange { region, ..TenantChange::default() };
        assert!(system(update(moved.clone())));
        assert!(!system(update(TenantChange { name: Some("b".to_owned()), ..moved })));
    }

    #[test]
    fn what_writes_makes_none() {
        assert!(!system(update(TenantChange::default())));
        let record = Some(tenant_record());
        assert!(!own(TenantCommand::Set(SetTenant { version: 2, record })));
        let (rows, begun, events) = (Vec::new(), Vec::new(), Vec::new());
        let piece = MovedPiece { number: 0, rows, begun, events, is_last: false };
        let piece = tenant_envelope(tenant(1), TenantCommand::Move(MoveTenant::TakeIn(piece)));
        assert!(piece.is_of_copy() && !piece.makes_room());
        assert!(!own(TenantCommand::Compare));
        let name = "a".to_owned();
        assert!(!own(TenantCommand::DeleteWorkflow(DeleteWorkflow { name, if_version: None })));
        let text = text_envelope(tenant(1), "cancelled");
        assert!(!text.is_of_copy() && !text.makes_room());
    }
}
