//! For tests: an actor that does with a message what its test says.

use std::marker::PhantomData;

use ractor::{Actor, ActorProcessingErr, ActorRef, Message, State};

struct Puppet<M, S>(PhantomData<fn(M, S)>);

impl<M: Message, S: State> Actor for Puppet<M, S> {
    type Msg = M;
    type State = (S, fn(&mut S, M));
    type Arguments = Self::State;

    async fn pre_start(
        &self,
        _: ActorRef<M>,
        arguments: Self::State,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(arguments)
    }

    async fn handle(
        &self,
        _: ActorRef<M>,
        message: M,
        (state, act): &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        act(state, message);
        Ok(())
    }
}

/// Starts one.
pub(crate) async fn puppet<M: Message, S: State>(state: S, act: fn(&mut S, M)) -> ActorRef<M> {
    let started = Actor::spawn(None, Puppet(PhantomData), (state, act)).await;
    started.expect("it starts").0
}
