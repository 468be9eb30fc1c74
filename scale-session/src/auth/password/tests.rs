use super::*;

/// Cheap parameters for tests.
const CHEAP: Cost = Cost { memory: 64, passes: 1, lanes: 1 };

fn cheap() -> Passwords {
    Passwords::new().cost(CHEAP).unwrap()
}

#[tokio::test]
async fn hashes_are_phc_strings_with_owasps_numbers() {
    let stored = Passwords::new().hash("x").await.unwrap();
    assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
    assert_ne!(stored, Passwords::new().hash("x").await.unwrap(), "salted");
    // The result of the reference implementation (its own test: argon2id, 2 passes, 64 MiB, 1
    // lane).
    let known =
        "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
    let passwords = Passwords::new();
    assert!(matches!(
        passwords.verify("password", Some(known)).await.unwrap(),
        Verified::Yes { rehashed: Some(_) }
    ));
    assert_eq!(passwords.verify("passwore", Some(known)).await.unwrap(), Verified::No);
    // The same with memory that was used before.
    let own = "$argon2id$v=19$m=19456,t=2,p=1$MDEyMzQ1Njc4OWFiY2RlZg$gy5SuVm5Z7Vw7keB9se9p87QGcomaseB/S2U1OhTsM0";
    for _ in 0..3 {
        let verified = passwords.verify("correct horse battery staple", Some(own)).await.unwrap();
        assert_eq!(verified, Verified::Yes { rehashed: None });
    }
    assert!(
        passwords.0.memory.lock().iter().all(|blocks| blocks.len() <= 19_456),
        "an import's memory is not kept"
    );
}

#[tokio::test]
async fn passwords_are_taken_as_they_are() {
    let passwords = cheap();
    let odd = " Pässwörd\t\u{1F511} with spaces ";
    let stored = passwords.hash(odd).await.unwrap();
    assert!(passwords.verify(odd, Some(&stored)).await.unwrap().is_yes());
    for other in [odd.trim(), &odd.to_lowercase(), &odd[..odd.len() - 1], "", &"x".repeat(1 << 20)]
    {
        assert!(!passwords.verify(other, Some(&stored)).await.unwrap().is_yes(), "{other:.20}");
    }
    let long = "x".repeat(LONGEST);
    let stored = passwords.hash(&long).await.unwrap();
    assert!(
        !passwords.verify(&long[1..], Some(&stored)).await.unwrap().is_yes(),
        "nothing is cut off"
    );
    assert!(matches!(passwords.hash(&"x".repeat(LONGEST + 1)).await, Err(Error::Password(_))));
}

#[tokio::test]
async fn a_new_cost_or_pepper_is_taken_over_when_a_password_fits() {
    let old = cheap();
    let first = old.hash("secret").await.unwrap();
    assert_eq!(old.verify("secret", Some(&first)).await.unwrap(), Verified::Yes { rehashed: None });
    let peppered = cheap().pepper("a1", &[1; 32]).unwrap();
    let Verified::Yes { rehashed: Some(second) } =
        peppered.verify("secret", Some(&first)).await.unwrap()
    else {
        panic!()
    };
    assert!(second.contains(",keyid=a1$"));
    assert_eq!(
        peppered.verify("secret", Some(&second)).await.unwrap(),
        Verified::Yes { rehashed: None }
    );
    // Stolen hashes are useless without the pepper, or with another pepper of the same id.
    for other in [cheap(), cheap().pepper("a1", &[2; 32]).unwrap()] {
        assert_eq!(other.verify("secret", Some(&second)).await.unwrap(), Verified::No);
    }
    let rotated = peppered.pepper("b2", &[3; 32]).unwrap();
    let Verified::Yes { rehashed: Some(third) } =
        rotated.verify("secret", Some(&second)).await.unwrap()
    else {
        panic!()
    };
    assert!(third.contains("keyid=b2"));
    let dearer = rotated.cost(Cost { passes: 3, ..CHEAP }).unwrap();
    assert!(matches!(
        dearer.verify("secret", Some(&third)).await.unwrap(),
        Verified::Yes { rehashed: Some(_) }
    ));
}

/// Counts hashes instead of seconds, because the hash is what takes time.
#[tokio::test]
async fn nobody_takes_as_long_as_somebody() {
    let passwords = cheap();
    let stored = passwords.hash("secret").await.unwrap();
    for stored in [
        None,
        Some(""),
        Some("$2b$12$bcrypt"),
        Some("$argon2id$v=19$m=64,t=1,p=1,keyid=gone$c2FsdHNhbHQ$AAAA"),
        Some(&stored),
    ] {
        let before = passwords.0.memory.lock().pop();
        assert!(!passwords.verify("guess", stored).await.unwrap().is_yes());
        // Memory was allocated and filled, with or without a stored hash.
        let blocks = passwords.0.memory.lock().last().map_or(0, Vec::len);
        assert!(blocks >= CHEAP.params().unwrap().block_count(), "{stored:?}");
        drop(before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_is_bounded_in_memory_and_the_rest_is_told_at_once() {
    let passwords =
        Passwords::new().cost(Cost { memory: 4_096, passes: 1, lanes: 1 }).unwrap().at_once(2, 10);
    let tasks: Vec<_> = (0..500)
        .map(|n| {
            let passwords = passwords.clone();
            tokio::spawn(async move { passwords.hash(&format!("password {n}")).await })
        })
        .collect();
    let (mut done, mut busy) = (0, 0);
    for (n, task) in tasks.into_iter().enumerate() {
        // Some callers are dropped half way.
        if n % 7 == 0 {
            task.abort();
        }
        match task.await {
            Ok(Ok(_)) => done += 1,
            Ok(Err(Error::Busy { .. })) => busy += 1,
            Ok(other) => panic!("{other:?}"),
            Err(_) => {}
        }
    }
    assert!(done >= 2 && busy > 0, "{done} {busy}");
    assert!(passwords.0.memory.lock().len() <= 2, "memory for two");
    assert_eq!(passwords.0.waiting.load(SeqCst), 0);
    while passwords.0.permits.available_permits() < 2 {
        tokio::task::yield_now().await;
    }
    passwords.hash("afterwards").await.unwrap();
}

#[test]
fn calibration_keeps_to_owasp_at_least() {
    let cost = Cost::calibrate(1, Duration::from_millis(1)).unwrap();
    assert_eq!(cost, Cost { memory: 19_456, passes: 2, lanes: 1 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hashes_one_after_the_other_share_a_thread_even_if_one_panics() {
    let passwords = Passwords::new().at_once(1, 10);
    let mut threads = std::collections::HashSet::new();
    for _ in 0..20 {
        threads.insert(passwords.run(|_, _| std::thread::current().id()).await.unwrap());
    }
    assert_eq!(threads.len(), 1);
    let broken: Result<(), _> = passwords.run(|_, _| panic!("a bug")).await;
    assert!(matches!(broken, Err(Error::Busy { .. })));
    assert!(
        threads.insert(passwords.run(|_, _| std::thread::current().id()).await.unwrap()),
        "that one is gone"
    );
}

#[cfg(feature = "foreign-hashes")]
#[tokio::test]
async fn accounts_of_another_system_move_in() {
    let passwords = cheap();
    for stored in foreign::tests::MADE {
        let verified = passwords.verify_for("ann", "Pässwörd 1", Some(stored)).await.unwrap();
        let Verified::Yes { rehashed: Some(own) } = verified else {
            panic!("{stored}: {verified:?}")
        };
        assert!(own.starts_with("$argon2id$v=19$m=64,"), "{own}");
        assert_eq!(
            passwords.verify_for("ann", "Pässwörd 1", Some(&own)).await.unwrap(),
            Verified::Yes { rehashed: None }
        );
        assert_eq!(passwords.verify_for("ann", "wrong", Some(stored)).await.unwrap(), Verified::No);
    }
    // A hash whose cost exceeds the limits matches no password.
    let dear = "$2y$31$.n6Yy84.NdvagA8W2oq0LOvCvmdEo9TOXGNOpYE7KJ93Gw2JRs/2.";
    assert_eq!(passwords.verify_for("ann", "Pässwörd 1", Some(dear)).await.unwrap(), Verified::No);
}

/// Names without an account cost as much as accounts: each name always the same, in the
/// proportion of the accounts seen.
#[cfg(feature = "foreign-hashes")]
#[tokio::test]
async fn the_cost_of_a_name_tells_nothing() {
    let passwords = cheap();
    let own = passwords.hash("secret").await.unwrap();
    for n in 0..40 {
        let stored = if n % 4 == 0 { own.as_str() } else { foreign::tests::MADE[0] };
        passwords.verify_for("somebody", "guess", Some(stored)).await.unwrap();
    }
    let is_foreign =
        |n: u32| matches!(passwords.0.kind_of(&format!("nobody{n}")), Some(Kind::Foreign(_)));
    let foreign = (0..1_000).filter(|n| is_foreign(*n)).count();
    assert!(
        (650..850).contains(&foreign),
        "{foreign} of 1,000, where three in four accounts have such a hash"
    );
    assert_eq!((0..1_000).filter(|n| is_foreign(*n)).count(), foreign, "each time the same");
    assert_eq!(passwords.verify_for("nobody1", "guess", None).await.unwrap(), Verified::No);
}
