use super::*;

fn at(sequence: u64) -> Position {
    Position { era: 1, sequence, origin: 0 }
}

#[test]
fn marks_travel_as_bytes_in_their_order() {
    let marks = [Mark::At(at(0)), Mark::At(at(0xFF)), Mark::At(at(0x100)), Mark::Primary];
    for pair in marks.windows(2) {
        assert!(pair[0] < pair[1] && pair[0].to_bytes() < pair[1].to_bytes());
    }
    assert_eq!(marks.map(|m| Mark::from_bytes(&m.to_bytes())), marks);
    assert_eq!(Mark::from_bytes(b"junk"), Mark::Primary);
}

#[test]
fn marks_travel_as_text_and_bad_ones_are_refused() {
    for mark in [Mark::Primary, Mark::At(at(0x16_B374_D848))] {
        assert_eq!(mark.to_string().parse(), Ok(mark));
    }
    for bad in ["", "2.", "1.primary", "1.0/1", "2.x-y", "2.1", "primary"] {
        assert_eq!(bad.parse::<Mark>(), Err(()), "{bad}");
    }
}

#[tokio::test]
async fn only_the_database_written_to_is_dirty() {
    assert_eq!(needed(1), Need::Nothing);
    scope(Some((1, Mark::At(at(5)))), async {
        assert_eq!((needed(1), needed(2)), (Need::Write(at(5)), Need::Nothing));
        wrote(2);
        assert_eq!((needed(1), needed(2)), (Need::Write(at(5)), Need::Primary));
    })
    .await;
}

#[tokio::test]
async fn scopes_inside_of_each_other_need_and_write_alike() {
    scope(Some((1, Mark::At(at(5)))), async {
        scope(Some((1, Mark::At(at(3)))), async { assert_eq!(needed(1), Need::Write(at(5))) })
            .await;
        scope(Some((1, Mark::At(at(9)))), async { assert_eq!(needed(1), Need::Write(at(9))) })
            .await;
        assert_eq!(needed(1), Need::Write(at(5)), "what the inner one needs is its own");
        scope(None, async { wrote(2) }).await;
        assert_eq!((needed(1), needed(2)), (Need::Write(at(5)), Need::Primary));
        scope(None, async { assert_eq!(needed(2), Need::Primary) }).await;
    })
    .await;
    assert_eq!(needed(2), Need::Nothing);
}

#[tokio::test]
async fn tasks_and_streams_carry_their_scope() {
    use futures_util::{StreamExt, stream};
    let (task, stream) = scope(None, async {
        let lone = tokio::spawn(async { needed(1) }).await.unwrap();
        assert_eq!(lone, Need::Nothing);
        let task = tokio::spawn(carry(async {
            tokio::task::yield_now().await;
            needed(1)
        }));
        let stream = carry_stream(stream::once(async { needed(1) }));
        wrote(1);
        (task, stream)
    })
    .await;
    assert_eq!(
        (task.await.unwrap(), stream.collect::<Vec<_>>().await),
        (Need::Primary, vec![Need::Primary])
    );
}
