//! What replicas held at one position, and who is told that it differs.

use shiioo_actors::domain::ids::{Position, RaftId};
use shiioo_actors::ports::{Durability as _, StateDigest};

use super::fabric::{Cluster, GROUP, story};
use super::part::part;

#[test]
fn replicas_say_what_they_held_and_hear_of_a_difference_from_the_leader_only() {
    story(async {
        let cluster = Cluster::start(3, 3).await;
        let leader = cluster.leader().await;
        cluster.propose_many(leader, 5, "all have").await;
        cluster.same(leader, &[1, 2, 3]).await;
        let followers = cluster.followers(leader);
        let (odd, other) = (followers[0], followers[1]);
        let at = cluster.part(odd).live().position.unwrap();
        let digest = StateDigest([5; 32]);
        for member in [odd, other] {
            let told = cluster.groups(leader).digest_of(GROUP, RaftId(member), part(), at).await;
            assert_eq!(told, Ok(Some(digest)));
        }
        let later = Position { index: at.index + 1, ..at };
        let told = cluster.groups(leader).digest_of(GROUP, RaftId(odd), part(), later).await;
        assert_eq!(told, Ok(None), "not yet");

        let told =
            cluster.groups(other).tell_difference(GROUP, RaftId(odd), part(), at, digest).await;
        assert!(told.is_err(), "only the leader has compared");
        assert_eq!(cluster.part(odd).distrusted(), []);
        cluster
            .groups(leader)
            .tell_difference(GROUP, RaftId(odd), part(), at, digest)
            .await
            .unwrap();
        assert_eq!(cluster.part(odd).distrusted(), [(at, digest)]);
        cluster.isolate(odd);
        let told = cluster.groups(leader).digest_of(GROUP, RaftId(odd), part(), at).await;
        assert!(told.is_err(), "nothing is concluded from silence");
    });
}
