//! What subscribers get, and when.

use std::sync::atomic::Ordering;

use super::*;
use crate::filter::{Filter, What};
use crate::fixture;
use crate::identity::Attribution;
use tcptracer_event::{Event, Kind};

/// What a subscriber found in its queue.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    /// So many in one message.
    Events(usize),
    Lost(LossSource, u64),
    /// From this second on, up to that, and the place behind it.
    Paused(i64, Option<i64>, (u64, u64)),
    Status(u64, bool),
}

const LIVE: [Got; 2] = [Got::Status(0, false), Got::Status(0, true)];

fn got(subscription: &mut Subscription) -> Vec<Got> {
    let mut all = Vec::new();
    while let Ok(item) = subscription.items.try_recv() {
        subscription
            .queued
            .fetch_sub(item.weight(), Ordering::Relaxed);
        all.push(match item {
            Item::Events(events) => Got::Events(events.len()),
            Item::Lost(loss, _) => Got::Lost(loss.source, loss.count),
            Item::Paused(pause, behind) => Got::Paused(
                pause.from.as_second(),
                pause.to.map(Timestamp::as_second),
                (behind.sequence, behind.lost),
            ),
            Item::Status(_, at, live) => Got::Status(at.sequence, live),
        });
    }
    all
}

fn everything() -> Matcher {
    Matcher::new(Vec::new(), Vec::new())
}

fn of_kind(kind: Kind) -> Matcher {
    let what = What {
        kinds: vec![kind],
        ..What::default()
    };
    let filter = Filter {
        what,
        ..Filter::default()
    };
    Matcher::new(vec![filter], Vec::new())
}

/// By no id.
fn subscribe(hub: &mut Hub, matcher: Matcher, past: Past, follow: bool) -> Subscription {
    let subscribed = hub.subscribe(None, matcher, past, follow, false);
    subscribed.expect("nobody else goes by no id")
}

/// One event for each of these times; returns how many were lost.
fn publish(hub: &mut Hub, kind: Kind, times: impl IntoIterator<Item = Nanos>) -> u64 {
    let event = |time| Attributed {
        event: Event {
            time,
            ..fixture::event(kind, time, 0)
        },
        container: None,
        who: Attribution::Host,
    };
    let encode = |sequence, attributed: &Attributed| {
        let identity = tcptracer_proto::EncodedIdentity::default();
        EncodedEvent::new(sequence, &attributed.event, &identity, &|_| {
            prost_types::Timestamp::default()
        })
    };
    hub.publish(times.into_iter().map(event).collect(), encode)
}

fn ring(count: u64) -> Loss {
    let source = LossSource::Ring;
    Loss { source, count }
}

/// For who has heard of no loss.
fn after(sequence: u64) -> Past {
    Past::After(Position { sequence, lost: 0 })
}

/// The last position in a queue that is told with a loss or a live status.
fn told(subscription: &mut Subscription) -> Position {
    let mut told = None;
    while let Ok(item) = subscription.items.try_recv() {
        match item {
            Item::Lost(_, Some(position)) | Item::Status(_, position, true) => {
                told = Some(position);
            }
            _ => {}
        }
    }
    told.expect("a position")
}

/// What somebody gets of the past: between the two statuses.
fn past(hub: &mut Hub, matcher: Matcher, past: Past) -> Vec<Got> {
    let mut all = got(&mut subscribe(hub, matcher, past, false));
    assert_eq!(all.remove(0), Got::Status(hub.sequence(), false));
    assert_eq!(all.pop(), Some(Got::Status(hub.sequence(), true)));
    all
}

#[test]
fn everybody_gets_what_it_wants() {
    let mut hub = Hub::new(0, 10);
    let mut all = subscribe(&mut hub, everything(), Past::None, true);
    let mut closes = subscribe(&mut hub, of_kind(Kind::Close), Past::None, true);
    publish(&mut hub, Kind::Connect, 1..=2);
    publish(&mut hub, Kind::Close, 3..=3);
    let [first, second] = LIVE;
    assert_eq!(
        got(&mut all),
        [first, second, Got::Events(2), Got::Events(1)]
    );
    let [first, second] = LIVE;
    assert_eq!(got(&mut closes), [first, second, Got::Events(1)]);
    assert_eq!(hub.losses().collect::<Vec<_>>(), []);
}

#[test]
fn who_is_slow_loses_its_own_and_is_told_in_its_place() {
    let mut hub = Hub::new(0, 5);
    let mut slow = subscribe(&mut hub, everything(), Past::None, true);
    let mut quick = subscribe(&mut hub, everything(), Past::None, true);
    got(&mut slow);
    got(&mut quick);
    let mut lost = 0;
    for times in [1..=4, 5..=8, 9..=9] {
        let count = times.clone().count();
        lost += publish(&mut hub, Kind::Connect, times);
        assert_eq!(got(&mut quick), [Got::Events(count)]);
    }
    assert_eq!(lost, 4);
    assert_eq!(got(&mut slow), [Got::Events(4), Got::Events(1)]);
    publish(&mut hub, Kind::Connect, 10..=10);
    assert_eq!(
        got(&mut slow),
        [Got::Lost(LossSource::Subscriber, 4), Got::Events(1)]
    );
}

#[test]
fn losses_that_found_no_room_are_told_also_without_events() {
    let mut hub = Hub::new(0, 5);
    let mut slow = subscribe(&mut hub, everything(), Past::None, true);
    got(&mut slow);
    publish(&mut hub, Kind::Connect, 1..=6);
    hub.lost(ring(7), 6);
    assert_eq!(got(&mut slow), [Got::Events(5)]);
    hub.look_after();
    assert_eq!(
        got(&mut slow),
        [
            Got::Lost(LossSource::Subscriber, 1),
            Got::Lost(LossSource::Ring, 7)
        ]
    );
}

/// Everything that happens, by this id.
fn subscribe_as(hub: &mut Hub, id: &str) -> Result<Subscription, Taken> {
    hub.subscribe(Some(id.into()), everything(), Past::None, true, false)
}

#[test]
fn who_is_ended_is_told_all_that_it_is_owed_though_its_queue_is_full() {
    let mut hub = Hub::new(0, 5);
    let mut slow = subscribe_as(&mut hub, "slow").expect("it is free");
    let mut quick = subscribe(&mut hub, everything(), Past::None, true);
    got(&mut slow);
    got(&mut quick);
    publish(&mut hub, Kind::Connect, 1..=5);
    publish(&mut hub, Kind::Connect, 6..=9);
    hub.lost(ring(7), 10);
    hub.set_status(Status {
        pods_synced: true,
        ..Status::default()
    });
    let number = hub.find("slow").expect("it is there");
    hub.end(number);
    assert!(!hub.has(number));
    // What comes later is not its own any more.
    hub.lost(ring(1), 11);
    assert_eq!(
        got(&mut slow),
        [
            Got::Events(5),
            Got::Lost(LossSource::Subscriber, 4),
            Got::Lost(LossSource::Ring, 7),
            Got::Status(9, true),
        ]
    );
    assert!(slow.items.is_closed());
    assert_eq!(hub.subscribers(), 1);
    assert!(!quick.items.is_closed());
}

#[test]
fn all_are_told_what_they_are_owed_when_the_agent_ends() {
    let mut hub = Hub::new(0, 5);
    let mut slow = subscribe(&mut hub, everything(), Past::None, true);
    got(&mut slow);
    publish(&mut hub, Kind::Connect, 1..=6);
    hub.end_all();
    assert_eq!(
        got(&mut slow),
        [Got::Events(5), Got::Lost(LossSource::Subscriber, 1)]
    );
    assert!(slow.items.is_closed());
}

#[test]
fn an_id_is_one_subscribers_as_long_as_it_is_there() {
    let mut hub = Hub::new(0, 5);
    assert_eq!(hub.find("a"), None);
    let first = subscribe_as(&mut hub, "a").expect("it is free");
    let number = hub.find("a").expect("it is there");
    assert_eq!(subscribe_as(&mut hub, "a").err(), Some(Taken));
    assert!(subscribe_as(&mut hub, "b").is_ok());

    hub.end(number);
    // Nobody is there to be ended again.
    hub.end(number);
    assert_eq!(hub.find("a"), None);
    drop(first);
    let second = subscribe_as(&mut hub, "a").expect("it was ended");
    drop(second);
    assert_eq!(hub.find("a"), None);
    let _third = subscribe_as(&mut hub, "a").expect("it has gone");
    assert!(hub.find("a").is_some_and(|found| found != number));
}

#[test]
fn who_has_gone_is_forgotten() {
    let mut hub = Hub::new(0, 5);
    let gone = subscribe(&mut hub, everything(), Past::None, true);
    let _stays = subscribe(&mut hub, everything(), Past::None, true);
    assert_eq!(hub.subscribers(), 2);
    assert!(!hub.look_after());
    drop(gone);
    assert!(hub.look_after());
    assert_eq!((hub.subscribers(), hub.matchers().count()), (1, 1));
}

#[test]
fn the_status_comes_when_it_has_changed() {
    let mut hub = Hub::new(0, 5);
    let mut watch = subscribe(&mut hub, everything(), Past::None, true);
    let status = Status {
        pods_synced: true,
        ..Status::default()
    };
    hub.set_status(status.clone());
    hub.set_status(status);
    let [first, second] = LIVE;
    assert_eq!(got(&mut watch), [first, second, Got::Status(0, true)]);
}

#[test]
fn the_status_waits_for_the_losses_before_it() {
    let mut hub = Hub::new(0, 5);
    let mut slow = subscribe(&mut hub, everything(), Past::None, true);
    got(&mut slow);
    publish(&mut hub, Kind::Connect, 1..=4);
    publish(&mut hub, Kind::Connect, 5..=6);
    assert_eq!(slow.items.len(), 2);
    // Room for one: not for the loss and an event behind it.
    slow.queued.fetch_sub(1, Ordering::Relaxed);
    hub.set_status(Status {
        pods_synced: true,
        ..Status::default()
    });
    assert_eq!(slow.items.len(), 2);
    slow.queued.fetch_add(1, Ordering::Relaxed);
    assert_eq!(got(&mut slow), [Got::Events(4), Got::Events(1)]);
    hub.look_after();
    assert_eq!(
        got(&mut slow),
        [Got::Lost(LossSource::Subscriber, 1), Got::Status(6, true)]
    );
}

#[test]
fn the_past_is_what_was_asked_for() {
    let mut hub = Hub::new(100, 100);
    publish(&mut hub, Kind::Connect, [10, 20]);
    // Times are not in order.
    publish(&mut hub, Kind::Close, [40, 30]);
    let events = |count| vec![Got::Events(count)];

    assert_eq!(past(&mut hub, everything(), Past::None), []);
    assert_eq!(past(&mut hub, everything(), Past::Last(3)), events(3));
    assert_eq!(
        past(&mut hub, of_kind(Kind::Connect), Past::Last(1)),
        events(1)
    );
    assert_eq!(past(&mut hub, everything(), Past::Since(20)), events(3));
    assert_eq!(past(&mut hub, everything(), Past::Since(35)), events(1));
    assert_eq!(past(&mut hub, everything(), after(1)), events(3));
    assert_eq!(past(&mut hub, everything(), after(4)), []);
    assert_eq!(hub.subscribers(), 0);
}

#[test]
fn losses_of_the_past_have_their_place_and_time() {
    let mut hub = Hub::new(100, 100);
    hub.lost(ring(1), 5);
    publish(&mut hub, Kind::Connect, [10]);
    hub.lost(ring(2), 15);
    hub.lost(ring(3), 16);
    publish(&mut hub, Kind::Close, [20]);
    let lost = |count| Got::Lost(LossSource::Ring, count);

    let all = past(&mut hub, everything(), Past::Since(0));
    assert_eq!(all, [lost(1), Got::Events(1), lost(5), Got::Events(1)]);
    let some = past(&mut hub, everything(), Past::Since(16));
    assert_eq!(some, [lost(5), Got::Events(1)]);
    let late = past(&mut hub, everything(), Past::Since(17));
    assert_eq!(late, [Got::Events(1)]);
    let after = past(&mut hub, everything(), after(1));
    assert_eq!(after, [lost(5), Got::Events(1)]);
    assert_eq!(hub.losses().collect::<Vec<_>>(), [ring(6)]);
}

#[test]
fn who_resumes_is_told_once_of_what_was_lost() {
    let mut hub = Hub::new(100, 100);
    let lost = |count| Got::Lost(LossSource::Ring, count);
    let mut live = subscribe(&mut hub, everything(), Past::None, true);
    publish(&mut hub, Kind::Connect, [10]);
    hub.lost(ring(2), 15);
    let heard = told(&mut live);
    assert_eq!(
        heard,
        Position {
            sequence: 1,
            lost: 2
        }
    );
    assert_eq!(past(&mut hub, everything(), Past::After(heard)), []);
    // The run of losses goes on.
    hub.lost(ring(3), 16);
    publish(&mut hub, Kind::Connect, [20]);
    assert_eq!(
        past(&mut hub, everything(), Past::After(heard)),
        [lost(3), Got::Events(1)]
    );
    // Who was told by an event only has it all before it, and nothing behind it.
    assert_eq!(past(&mut hub, everything(), after(2)), []);
    hub.lost(ring(1), 25);
    assert_eq!(past(&mut hub, everything(), after(2)), [lost(1)]);

    // Who comes after a loss has its place by the status, and who resumes by the loss of the past.
    let heard = told(&mut subscribe(&mut hub, everything(), Past::None, false));
    assert_eq!(past(&mut hub, everything(), Past::After(heard)), []);
    let mut resumed = subscribe(&mut hub, everything(), after(1), false);
    let mut places = Vec::new();
    while let Ok(item) = resumed.items.try_recv() {
        if let Item::Lost(_, at) = item {
            places.push(at.map(|at| (at.sequence, at.lost)));
        }
    }
    assert_eq!(places, [Some((1, 5)), Some((2, 6))]);
}

#[test]
fn the_place_behind_several_losses_comes_with_the_last() {
    let mut hub = Hub::new(0, 5);
    let mut slow = subscribe(&mut hub, everything(), Past::None, true);
    got(&mut slow);
    publish(&mut hub, Kind::Connect, 1..=6);
    hub.lost(ring(7), 6);
    got(&mut slow);
    publish(&mut hub, Kind::Connect, 7..=8);
    let mut places = Vec::new();
    while let Ok(item) = slow.items.try_recv() {
        if let Item::Lost(loss, at) = item {
            places.push((loss.source, at.map(|at| (at.sequence, at.lost))));
        }
    }
    let expected = [
        (LossSource::Subscriber, None),
        (LossSource::Ring, Some((6, 7))),
    ];
    assert_eq!(places, expected);
}

#[test]
fn who_was_told_what_the_history_lost_is_not_told_again() {
    let mut hub = Hub::new(3, 100);
    hub.lost(ring(1), 1);
    publish(&mut hub, Kind::Connect, 1..=5);
    let mut resumed = subscribe(&mut hub, everything(), after(1), false);
    let first = std::iter::from_fn(|| resumed.items.try_recv().ok()).nth(1);
    let Some(Item::Lost(loss, Some(heard))) = first else {
        panic!("{first:?}");
    };
    assert_eq!((loss.source, loss.count), (LossSource::History, 1));
    assert_eq!(
        past(&mut hub, everything(), Past::After(heard)),
        [Got::Events(3)]
    );
}

#[test]
fn the_history_is_bounded_and_says_what_it_does_not_hold() {
    let mut hub = Hub::new(3, 100);
    publish(&mut hub, Kind::Connect, 1..=5);
    assert_eq!(hub.history_len(), 3);
    assert_eq!(
        past(&mut hub, everything(), after(1)),
        [Got::Lost(LossSource::History, 1), Got::Events(3)]
    );
    // Without events there are no more losses than that either.
    for n in 0..100 {
        let source = [LossSource::Ring, LossSource::Agent][n % 2];
        hub.lost(Loss { source, count: 1 }, 6);
    }
    assert_eq!(hub.history.entries.len(), 6);
}

#[test]
fn a_batch_has_no_more_than_512() {
    let mut hub = Hub::new(1000, 1000);
    publish(&mut hub, Kind::Connect, 1..=1000);
    assert_eq!(
        past(&mut hub, everything(), Past::Last(1000)),
        [Got::Events(BATCH), Got::Events(1000 - BATCH)]
    );
}

#[test]
fn who_comes_later_is_told_of_what_has_no_room() {
    let room = |count| Got::Lost(LossSource::FilterMap, count);
    let mut hub = Hub::new(100, 100);
    let mut early = subscribe(&mut hub, everything(), Past::None, true);
    got(&mut early);
    assert_eq!(hub.set_without_room(2, 10), 2);
    assert_eq!(hub.set_without_room(2, 11), 0);
    assert_eq!(hub.set_without_room(3, 12), 1);
    assert_eq!(got(&mut early), [room(2), room(1)]);

    let [first, second] = LIVE;
    let mut late = subscribe(&mut hub, everything(), Past::None, true);
    assert_eq!(got(&mut late), [first, second, room(3)]);
    // Once is enough.
    let [first, second] = LIVE;
    let mut late = subscribe(&mut hub, everything(), Past::Since(0), true);
    assert_eq!(got(&mut late), [first, room(3), second]);

    assert_eq!(hub.set_without_room(0, 20), 0);
    let mut late = subscribe(&mut hub, everything(), Past::None, true);
    assert_eq!(got(&mut late), LIVE);
    assert_eq!(
        hub.losses().collect::<Vec<_>>(),
        [Loss {
            source: LossSource::FilterMap,
            count: 3
        }]
    );
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

#[test]
fn pauses_are_told_in_their_place_to_who_asks_for_that_past() {
    let mut hub = Hub::new(10, 10);
    hub.pause(second(1), 10);
    assert_eq!(hub.paused_since(), Some(second(1)));
    hub.end_pause(second(3), 30);
    publish(&mut hub, Kind::Connect, [40, 50]);
    hub.pause(second(6), 60);
    hub.end_pause(second(7), 70);
    publish(&mut hub, Kind::Connect, [80]);
    hub.pause(second(9), 90);
    assert_eq!(hub.paused_for(100), Duration::from_nanos(20 + 10 + 10));

    let [first, middle, open] = [
        || Got::Paused(1, Some(3), (0, 1)),
        || Got::Paused(6, Some(7), (2, 2)),
        || Got::Paused(9, None, (3, 3)),
    ];
    for (since, expected) in [
        (
            0,
            vec![first(), Got::Events(2), middle(), Got::Events(1), open()],
        ),
        (31, vec![Got::Events(2), middle(), Got::Events(1), open()]),
        (71, vec![Got::Events(1), open()]),
        (1000, vec![open()]),
    ] {
        let told = past(&mut hub, everything(), Past::Since(since));
        assert_eq!(told, expected, "{since}");
    }
    for (last, expected) in [
        (1, vec![Got::Events(1), open()]),
        (2, vec![Got::Events(1), middle(), Got::Events(1), open()]),
    ] {
        assert_eq!(past(&mut hub, everything(), Past::Last(last)), expected);
    }
    let at = |sequence, lost| Past::After(Position { sequence, lost });
    for (position, expected) in [
        (
            at(1, 0),
            vec![Got::Events(1), middle(), Got::Events(1), open()],
        ),
        (at(2, 0), vec![middle(), Got::Events(1), open()]),
        (at(2, 2), vec![Got::Events(1), open()]),
        (at(3, 2), vec![open()]),
        (at(3, 3), vec![]),
    ] {
        assert_eq!(
            past(&mut hub, everything(), position),
            expected,
            "{position:?}"
        );
    }
    assert_eq!(past(&mut hub, everything(), Past::None), []);
}

#[test]
fn losses_on_both_sides_of_a_pause_are_told_for_themselves() {
    let mut hub = Hub::new(10, 10);
    hub.lost(ring(3), 10);
    hub.pause(second(2), 20);
    hub.end_pause(second(3), 30);
    hub.lost(ring(4), 40);
    let lost = |count| Got::Lost(LossSource::Ring, count);
    let pause = || Got::Paused(2, Some(3), (0, 4));
    let at = |lost| Past::After(Position { sequence: 0, lost });
    for (position, expected) in [
        (at(0), vec![lost(3), pause(), lost(4)]),
        (at(3), vec![pause(), lost(4)]),
        (at(4), vec![lost(4)]),
        (at(6), vec![lost(2)]),
        (at(8), vec![]),
    ] {
        assert_eq!(
            past(&mut hub, everything(), position),
            expected,
            "{position:?}"
        );
    }
}

#[test]
fn what_those_wanted_who_have_gone_is_handed_over_once() {
    let mut hub = Hub::new(0, 10);
    let first = subscribe(&mut hub, of_kind(Kind::Failed), Past::None, true);
    let second = subscribe(&mut hub, everything(), Past::None, true);
    let third = subscribe(&mut hub, everything(), Past::None, true);
    assert_eq!(hub.take_departed().len(), 0);
    drop(first);
    assert!(hub.look_after());
    let departed = hub.take_departed();
    assert!(departed.iter().all(Matcher::wants_failures) && departed.len() == 1);
    drop(second);
    publish(&mut hub, Kind::Connect, [1]);
    assert_eq!(hub.take_departed().len(), 1);
    hub.end(2);
    assert_eq!(hub.take_departed().len(), 1);
    assert_eq!((hub.subscribers(), hub.take_departed().len()), (0, 0));
    drop(third);
}

/// They are no losses: nobody is to raise an alarm.
#[test]
fn who_ends_a_pause_is_told_of_it_and_others_are_not() {
    let mut hub = Hub::new(0, 10);
    hub.pause(second(1), 10);
    hub.end_pause(second(2), 20);
    let mut first = hub
        .subscribe(None, everything(), Past::None, true, true)
        .expect("nobody else goes by no id");
    let mut second = subscribe(&mut hub, everything(), Past::None, true);
    let pause = Got::Paused(1, Some(2), (0, 1));
    let [before, live] = LIVE;
    assert_eq!(got(&mut first), [before, pause, live]);
    assert_eq!(got(&mut second), LIVE);
    assert_eq!(hub.losses().count(), 0);
}
