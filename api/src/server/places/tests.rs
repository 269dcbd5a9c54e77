use super::*;

const GREEDY: Whose = Whose::Unknown;
const LATER: Duration = Duration::from_secs(5);

fn tenant(number: u8) -> Whose {
    let id = format!("550e8400-e29b-41d4-a716-4466554400{number:02}");
    Whose::Tenant(id.parse().unwrap())
}

/// A connection with a request that took a place, told by its number; or what there was instead.
fn come(
    places: &mut Places<u64>,
    whose: Whose,
    now: Instant,
) -> Result<(u64, Option<u64>), NoPlace> {
    let number = places.enter(places.next, now);
    let claimed = places.claim(number, whose, now);
    if claimed.is_err() {
        places.remove(number);
    }
    places.turn(number, State::Working, now);
    claimed.map(|evicted| (number, evicted.map(|evicted| evicted.tell)))
}

/// Connections of the greedy one, as many as it gets, in this state.
fn greedy(size: usize, state: State, now: Instant) -> (Places<u64>, Vec<u64>) {
    let mut places = Places::new(size);
    let mut held = Vec::new();
    while let Ok((number, _)) = come(&mut places, GREEDY, now) {
        places.turn(number, state, now);
        held.push(number);
    }
    (places, held)
}

#[test]
fn however_many_connections_one_tenant_opens_others_find_places() {
    let now = Instant::now();
    let (mut places, held) = greedy(16, State::Working, now);
    assert_eq!(held.len(), 12);
    let of = |places: &mut Places<u64>, whose| {
        std::iter::from_fn(|| come(places, whose, now).ok()).count()
    };
    assert_eq!((of(&mut places, tenant(1)), of(&mut places, tenant(2))), (3, 1));
    assert_eq!(come(&mut places, tenant(3), now), Err(NoPlace), "all are worked for");
    for number in held {
        places.remove(number);
    }
    assert_eq!(places.taken, 4);
    assert_eq!(of(&mut places, tenant(2)), 9);
}

#[test]
fn whoever_holds_most_makes_way_for_whoever_holds_less() {
    for state in [State::WaitsForClient, State::WaitsForBody, State::Parked] {
        let began = Instant::now();
        let (mut places, mut held) = greedy(8, state, began);
        let now = began + GREEDY_IDLE_MIN;
        let came: Vec<_> = std::iter::from_fn(|| come(&mut places, tenant(1), now).ok()).collect();
        let evicted: Vec<_> = came.iter().filter_map(|(_, evicted)| *evicted).collect();
        held.truncate(evicted.len());
        assert_eq!(evicted, held, "the longest first, of {state:?}");
        assert!(came.len() >= 4 && places.held(GREEDY) >= came.len() - 1, "{}", came.len());
        // Nor does the greedy one get back what it had.
        assert_eq!(come(&mut places, GREEDY, now), Err(NoPlace));
    }
}

#[test]
fn a_neighbour_keeps_its_idle_connections() {
    let began = Instant::now();
    let mut places = Places::new(8);
    let (idle, _) = come(&mut places, tenant(1), began).unwrap();
    places.turn(idle, State::WaitsForClient, began);
    while come(&mut places, GREEDY, began).is_ok() {}
    let now = began + LATER;
    assert_eq!(come(&mut places, GREEDY, now), Err(NoPlace));
    // To a tenant that holds no more it makes way, for it has waited long.
    for other in 2.. {
        if places.taken == places.size {
            break;
        }
        come(&mut places, tenant(other), now).unwrap();
    }
    assert_eq!(come(&mut places, tenant(99), now).unwrap().1, Some(idle));
}

#[test]
fn who_is_worked_for_keeps_its_place_and_who_waits_a_moment_too() {
    let began = Instant::now();
    let (mut places, held) = greedy(4, State::Working, began);
    come(&mut places, tenant(1), began).unwrap();
    let now = began + LATER;
    assert_eq!(come(&mut places, tenant(2), now), Err(NoPlace));
    places.turn(held[1], State::WaitsForClient, now);
    assert_eq!(come(&mut places, tenant(2), now), Err(NoPlace));
    let now = now + GREEDY_IDLE_MIN;
    assert_eq!(come(&mut places, tenant(2), now).unwrap().1, Some(held[1]));
}

#[test]
fn a_body_that_came_after_the_answer_changes_nothing() {
    let began = Instant::now();
    let mut places = Places::new(1);
    let (number, _) = come(&mut places, tenant(1), began).unwrap();
    places.turn(number, State::WaitsForClient, began);
    places.turn_from(number, State::WaitsForBody, State::Working, began);
    assert_eq!(places.connections[&number].state, State::WaitsForClient);
    places.turn(number, State::Working, began);
    places.turn_from(number, State::Working, State::WaitsForBody, began);
    assert_eq!(places.connections[&number].state, State::WaitsForBody);
}

#[test]
fn a_connection_counts_for_the_tenant_of_its_last_request() {
    let now = Instant::now();
    let mut places = Places::new(4);
    let (number, _) = come(&mut places, tenant(1), now).unwrap();
    assert_eq!(places.claim(number, tenant(2), now), Ok(None));
    assert_eq!((places.held(tenant(1)), places.held(tenant(2)), places.taken), (0, 1, 1));
    places.remove(number);
    assert!(places.held.is_empty() && places.taken == 0);
    assert_eq!(places.claim(number, tenant(1), now), Err(NoPlace), "it was evicted");
}

#[test]
fn who_has_far_more_requests_than_the_others_crowds() {
    let began = Instant::now();
    let mut places = Places::new(64);
    let of = |places: &mut Places<u64>, whose, count| -> Vec<u64> {
        (0..count).map(|_| come(places, whose, began).unwrap().0).collect()
    };
    let many = of(&mut places, GREEDY, 9);
    assert_eq!(places.crowd(many[0], began), None, "it is alone");
    let few = of(&mut places, tenant(1), 2);
    assert_eq!(places.crowd(many[0], began), Some(9));
    assert_eq!(places.crowd(few[0], began), None);
    // What waits on purpose, or for its client, is not worked on.
    places.turn(many[0], State::Parked, began);
    assert_eq!(places.crowd(many[1], began), None, "eight are no more than four times two");
    places.turn(many[0], State::Working, began);
    for number in few {
        places.turn(number, State::WaitsForClient, began);
    }
    assert_eq!(places.crowd(many[0], began), Some(9), "it was at work a moment ago");
    assert_eq!(places.crowd(many[0], began + AT_WORK), None);
    // A request of another on the same connection counts for that one.
    places.claim(many[0], tenant(2), began).unwrap();
    assert_eq!(places.work[&GREEDY].requests, 8);
    for number in many {
        places.remove(number);
    }
    assert!(places.work.values().all(|work| work.requests == 0));
}

#[test]
fn who_was_at_work_long_ago_is_forgotten() {
    let mut now = Instant::now();
    let mut places = Places::new(64);
    let (stays, _) = come(&mut places, tenant(0), now).unwrap();
    for whose in 1..=99 {
        now += AT_WORK / 10;
        let (number, _) = come(&mut places, tenant(whose), now).unwrap();
        places.remove(number);
        let at_work = 11;
        assert!(places.work.len() <= 2 * at_work + WORK_LEN_MIN, "{}", places.work.len());
    }
    assert_eq!(places.work[&tenant(0)].requests, 1, "it is at work still");
    places.remove(stays);
}

#[test]
fn who_says_nothing_makes_way_for_the_next_newcomer() {
    let began = Instant::now();
    let mut places = Places::new(1);
    let first = places.enter(1, began);
    let _second = places.enter(2, began);
    assert!(places.make_way(began).is_none(), "nobody has waited for long");
    let now = began + ENTRANCE_MIN;
    places.turn(first, State::Working, now);
    assert_eq!(places.make_way(now).map(|evicted| evicted.tell), Some(2));
    places.claim(first, tenant(1), now).unwrap();
    places.turn(first, State::WaitsForClient, now);
    assert!(places.make_way(now + LATER).is_none(), "who has a place keeps it");
}
