use super::*;

const ANN: Account<'_> = Account { id: "7", email: "ann@example.com", password_hash: "old" };
const BEN: Account<'_> = Account { id: "8", email: "ben@example.com", password_hash: "old" };

fn links() -> AccountLinks {
    AccountLinks::new(
        "Shop",
        "https://shop.test/a/",
        Keys::new(&[1; 32]).unwrap(),
        &OneTimeStore::memory(),
    )
    .unwrap()
}

fn token(mail: &Mail) -> String {
    mail.link.as_ref().unwrap().split(['#', '=']).next_back().unwrap().to_owned()
}

#[tokio::test]
async fn a_link_is_its_accounts_and_good_once() {
    let links = links();
    let mail = links.verify_email(ANN).await.unwrap().unwrap();
    assert_eq!((mail.to.as_str(), mail.kind), ("ann@example.com", MailKind::VerifyEmail));
    assert!(
        mail.text.contains("https://shop.test/a/verify-email#")
            && !format!("{mail:?}").contains('#')
    );
    let token = token(&mail);
    assert_eq!(AccountLinks::account_id(&token).as_deref(), Some("7"));
    assert!(!links.redeem_verification(&token, BEN).await.unwrap());
    assert!(
        !links.redeem_verification(&token, Account { id: "8", ..ANN }).await.unwrap(),
        "another id, the same address"
    );
    assert!(
        !links
            .redeem_verification(&token, Account { email: "new@example.com", ..ANN })
            .await
            .unwrap()
    );
    assert!(!links.redeem_sign_in(&token, ANN).await.unwrap(), "another kind");
    for _ in 0..3 {
        assert!(
            links.peek(MailKind::VerifyEmail, &token, ANN).await.unwrap(),
            "a scanner of mails"
        );
    }
    assert!(
        links.redeem_verification(&token, Account { password_hash: "new", ..ANN }).await.unwrap()
    );
    assert!(
        !links.redeem_verification(&token, ANN).await.unwrap()
            && !links.peek(MailKind::VerifyEmail, &token, ANN).await.unwrap()
    );
}

#[tokio::test]
async fn a_reset_ends_with_the_password_it_was_for() {
    let links = links().in_the_query();
    let mail = links.reset_password("ANN@example.com ", Some(ANN)).await.unwrap().unwrap();
    assert!(mail.to == ANN.email && mail.link.as_ref().unwrap().contains("/reset-password?token="));
    assert!(
        !links
            .redeem_password_reset(&token(&mail), Account { password_hash: "new", ..ANN })
            .await
            .unwrap()
    );
    assert!(links.redeem_password_reset(&token(&mail), ANN).await.unwrap());
}

#[tokio::test]
async fn an_address_changes_only_by_the_new_one() {
    let links = links();
    let [link, notice] = links.change_email(ANN, "ann@new.example").await.unwrap().unwrap();
    assert_eq!(
        (link.to.as_str(), notice.to.as_str(), &notice.link),
        ("ann@new.example", ANN.email, &None)
    );
    let found = links.redeem_email_change(&token(&link), ANN).await.unwrap();
    assert_eq!(found.as_deref(), Some("ann@new.example"));
    for bad in [
        "",
        "x",
        "a@b@c",
        "a@b\r\nBcc: all@example.com",
        "a b@c",
        "<a@b>",
        &format!("{}@b", "x".repeat(300)),
    ] {
        assert!(links.change_email(BEN, bad).await.is_err(), "{bad}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_notice_advises_ends_the_link() {
    let links = links();
    let ask = async |new: &str| {
        tokio::time::advance(Duration::from_secs(61)).await;
        let [link, _] = links.change_email(ANN, new).await.unwrap().unwrap();
        token(&link)
    };
    let thiefs = ask("thief@evil.example").await;
    let changed = Account { password_hash: "new", ..ANN };
    assert_eq!(
        links.redeem_email_change(&thiefs, changed).await.unwrap(),
        None,
        "the password has changed"
    );
    let first = ask("one@evil.example").await;
    let second = ask("two@evil.example").await;
    assert_eq!(
        links.redeem_email_change(&first, ANN).await.unwrap(),
        None,
        "another one was asked for"
    );
    links.cancel_email_changes(ANN.id).await.unwrap();
    assert_eq!(links.redeem_email_change(&second, ANN).await.unwrap(), None, "given up");
    let third = ask("ann@new.example").await;
    assert_eq!(
        links.redeem_email_change(&third, ANN).await.unwrap().as_deref(),
        Some("ann@new.example")
    );
}

#[tokio::test(start_paused = true)]
async fn mails_are_counted_by_who_gets_them() {
    let links = links();
    let mut sent = 0;
    for n in 0..50 {
        let id = n.to_string();
        let account = Account { id: &id, email: &format!("{n}@example.com"), password_hash: "" };
        sent +=
            u32::from(links.change_email(account, "victim@example.com").await.unwrap().is_some());
    }
    assert_eq!(sent, 1, "from fifty accounts");
    let mut sent = 0;
    for n in 0..50 {
        let typed = format!("ann{}@example.com", "\u{200b}".repeat(n));
        sent += u32::from(links.sign_in(&typed, Some(ANN)).await.unwrap().is_some());
    }
    assert_eq!(sent, 1, "however the address was typed");
}

#[tokio::test]
async fn an_audit_log_tells_nobody_who_has_an_account() {
    let audit = AuditLog::memory(Keys::new(&[2; 32]).unwrap());
    let links = links().audit(&audit);
    links.reset_password("nobody@example.com", None).await.unwrap();
    links.reset_password(ANN.email, Some(ANN)).await.unwrap();
    let actors: Vec<String> =
        audit.records(0, 10).await.unwrap().into_iter().map(|record| record.event.actor).collect();
    assert_eq!(actors, ["", "7"], "the same work for both");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_flooded_and_nobody_is_told_of() {
    let links = links();
    let ask =
        async |account| links.reset_password("ann@example.com", account).await.unwrap().is_some();
    assert!(ask(Some(ANN)).await && !ask(Some(ANN)).await);
    let mut sent = 1;
    for _ in 0..20 {
        tokio::time::advance(Duration::from_secs(61)).await;
        sent += u32::from(ask(Some(ANN)).await);
    }
    assert_eq!(sent, MAILS_AN_HOUR);
    tokio::time::advance(HOUR).await;
    assert!(ask(Some(ANN)).await);
    // Unknown addresses: no mail, no error.
    assert!(links.sign_in("nobody@example.com", None).await.unwrap().is_none());
    assert!(links.sign_in("no address", None).await.unwrap().is_none());
}

#[tokio::test]
async fn what_happened_is_written_down() {
    let audit = AuditLog::memory(Keys::new(&[2; 32]).unwrap());
    let links = links().audit(&audit);
    let mail = links.sign_in(ANN.email, Some(ANN)).await.unwrap().unwrap();
    assert!(links.redeem_sign_in(&token(&mail), ANN).await.unwrap());
    let actions: Vec<String> =
        audit.records(0, 10).await.unwrap().into_iter().map(|record| record.event.action).collect();
    assert_eq!(actions, ["sign-in.link", "sign-in.redeem"]);
}

#[test]
fn links_lead_to_this_site_over_https() {
    let made = |base: &str| {
        AccountLinks::new("x", base, Keys::new(&[1; 32]).unwrap(), &OneTimeStore::memory())
    };
    for bad in [
        "http://example.com", "example.com", "", "ftp://x", "https://x/?a=b", "javascript:alert(1)",
    ] {
        assert!(made(bad).is_err(), "{bad}");
    }
    for good in ["https://example.com", "http://localhost:3000", "http://127.0.0.1:3000/a/"] {
        assert!(made(good).is_ok(), "{good}");
    }
}
