//! What clients do with the cluster itself: one register that all write and read, and requests to
//! the leader to step down.

use outside::ensure;
use rand::Rng as _;
use serde_json::{Value, json};
use stateright::semantics::register::{RegisterOp, RegisterRet};

use super::client::Call;
use super::session::Session;
use crate::checks::Checked;
use crate::checks::linear::{OPS_MAX, Seen};
use crate::env::trace;

impl Session {
    /// Writes or reads the description of the shared tenant, at whatever node. A write without an
    /// answer is not repeated: repeated, it could undo one that came between.
    pub(super) async fn use_register(&mut self) -> Checked {
        if !self.may_use_register() {
            return Ok(());
        }
        let path = format!("/api/tenants/{}", self.shared.id);
        let (op, call) = if self.rng.random_bool(0.5) {
            let value = self.mark();
            let call = Call::put(path, json!({ "description": value }));
            (RegisterOp::Write(value), call)
        } else {
            (RegisterOp::Read, Call::get(path))
        };
        let (from, told) = (trace::now(), self.board.told.get());
        let reply = self.client.anywhere(&call).await;
        if let Ok(reply) = &reply {
            self.board.learn_version(told, reply)?;
        }
        let answer = match (&op, reply) {
            (_, Ok(reply)) if reply.status == 200 => Some(match &op {
                RegisterOp::Write(_) => RegisterRet::WriteOk,
                RegisterOp::Read => {
                    let value = reply.body["description"].as_str().unwrap_or_default();
                    RegisterRet::ReadOk(value.to_owned())
                }
            }),
            // What was refused, or only looked, has changed nothing.
            (_, Ok(reply)) if reply.body["applied"] == false => return Ok(()),
            (RegisterOp::Read, _) => return Ok(()),
            (_, Ok(reply)) => {
                ensure!(reply.status >= 500, "a write to a register was refused: {reply}");
                None
            }
            (_, Err(_)) => None,
        };
        let answer = answer.map(|answer| (trace::now(), answer));
        let client = self.name.clone();
        if let Some(register) = &mut *self.board.register.borrow_mut() {
            register.history.push(Seen { client, from, answer, op });
        }
        Ok(())
    }

    fn may_use_register(&self) -> bool {
        let mut register = self.board.register.borrow_mut();
        let Some(register) = register.as_mut().filter(|register| register.begun < OPS_MAX) else {
            return false;
        };
        register.begun += 1;
        true
    }

    /// Asks for a node to leave until it is gone, or was told to stay.
    pub(super) async fn ask_to_leave(&mut self, id: &str) -> Checked {
        loop {
            let reply = self.client.settle(Call::delete(format!("/api/cluster/nodes/{id}"))).await;
            match reply.status {
                // Gone, by this request or an earlier one.
                200 => return Ok(()),
                404 if reply.retried => return Ok(()),
                // The rest would not be a majority: now. An earlier request may have been accepted.
                409 if reply.retried => {}
                409 => {
                    self.board.stays.set(true);
                    return Ok(());
                }
                _ => ensure!(false, "asked for a node to leave: {reply}"),
            }
        }
    }

    /// Asks for another leader. Whatever is answered is fine: a lone node has no other.
    pub(super) async fn ask_leader_to_step_down(&mut self) -> Checked {
        if !self.board.unrest || self.board.holds_still.get() {
            return Ok(());
        }
        let call = Call::post("/api/cluster/leader/step-down", Value::Null);
        if let Ok(reply) = self.client.anywhere(&call).await {
            ensure!(
                matches!(reply.status, 200 | 409) || reply.status >= 500,
                "asked to step down: {reply}"
            );
            if reply.status == 200 {
                self.board.stepped_down.set(self.board.stepped_down.get() + 1);
            }
        }
        Ok(())
    }
}
