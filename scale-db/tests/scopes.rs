//! Scopes: every possible write marks them, tasks and streams carry them, and nested scopes agree.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{Request, Response};
use scale_db::sticky::{self, Mark};
use scale_db::{Db, Loader, StickyLayer, observe};
use sqlx::Postgres as Pg;
use testkit::{Postgres, eventually};
use tower::{Layer, ServiceExt, service_fn};

/// A primary, and a replica whose replay is paused from here on.
async fn still() -> Result<(Postgres, Db<Pg>)> {
    let pg = Postgres::start(1).await?;
    let urls = pg.urls();
    let db = Db::<Pg>::builder(&urls[0])
        .replica(&urls[1])
        .monitor_interval(Duration::from_millis(100))
        .max_replica_lag(Duration::from_mins(10))
        .connect()
        .await?;
    sqlx::raw_sql(
        "create table t (id bigint, v text); insert into t values (1, 'old'); create sequence s",
    )
    .execute(&db)
    .await?;
    pg.caught_up().await?;
    eventually("both to be fit", async || db.nodes().iter().all(|node| node.fit).then_some(()))
        .await?;
    pg.node(1).pause_replay().await?;
    Ok((pg, db))
}

async fn rows(db: &Db<Pg>) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("select count(*) from t").fetch_one(db).await
}

const INSERT: &str = "insert into t values (2, 'new')";

#[tokio::test]
async fn writes_by_hand_mark_the_scope_and_reads_do_not() -> Result<()> {
    let (_pg, db) = still().await?;
    assert_eq!(rows(&db).await?, 1);
    sticky::scope(None, async {
        sqlx::query_scalar::<_, i64>("select count(*) from t").fetch_one(db.primary()).await?;
        assert_eq!(sticky::mark(&db).await, None, "a read on the primary");
        sqlx::query(INSERT).execute(db.primary()).await?;
        assert_eq!(rows(&db).await?, 2, "the same request reads what it wrote");
        assert!(matches!(sticky::mark(&db).await, Some(Mark::At(_))));
        anyhow::Ok(())
    })
    .await?;
    // Declared as a read, but there is no replica: the statement runs on the primary.
    let pg = Postgres::start(0).await?;
    let alone = Db::<Pg>::connect(&pg.urls()[0]).await?;
    sqlx::raw_sql("create sequence s").execute(&alone).await?;
    sticky::scope(None, async {
        sqlx::query("select nextval('s')").execute(alone.replica()).await?;
        assert!(sticky::mark(&alone).await.is_some());
        anyhow::Ok(())
    })
    .await?;
    for by_hand in ["begin", "acquire"] {
        sticky::scope(None, async {
            if by_hand == "begin" {
                let mut transaction = db.begin().await?;
                sqlx::query(INSERT).execute(&mut *transaction).await?;
                transaction.commit().await?;
            } else {
                sqlx::query(INSERT).execute(&mut *db.acquire().await?).await?;
            }
            assert!(rows(&db).await? > 2, "{by_hand}");
            anyhow::Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_loader_reads_what_its_request_wrote_and_is_recorded() -> Result<()> {
    let (_pg, db) = still().await?;
    let loader = |db: &Db<Pg>| {
        let db = db.clone();
        Loader::new(move |ids: Vec<i64>| {
            let db = db.clone();
            async move {
                let rows: Vec<(i64, String)> =
                    sqlx::query_as("select id, v from t where id = any($1)")
                        .bind(ids)
                        .fetch_all(&db)
                        .await?;
                Ok(rows.into_iter().collect::<HashMap<_, _>>())
            }
        })
    };
    sticky::scope(None, async {
        sqlx::query("update t set v = 'new' where id = 1").execute(&db).await?;
        assert_eq!(loader(&db).load(1).await?, Some("new".to_owned()));
        anyhow::Ok(())
    })
    .await?;
    // One loader for several requests: it reads the writes of each of them.
    let shared = loader(&db);
    let wrote = sticky::scope(None, async {
        sqlx::query("update t set v = 'newer' where id = 1").execute(&db).await?;
        shared.forget(&1);
        anyhow::Ok(shared.load(1).await?)
    });
    let (other, wrote) = tokio::join!(sticky::scope(None, shared.load(7)), wrote);
    assert_eq!((other?, wrote?), (None, Some("newer".to_owned())));
    let (_, record) = observe::record(async {
        let loader = loader(&db);
        for id in 0..5 {
            loader.load(id).await?;
        }
        Ok::<_, std::sync::Arc<sqlx::Error>>(())
    })
    .await;
    assert_eq!(record.total(), 5);
    Ok(())
}

#[tokio::test]
async fn a_body_that_goes_on_after_its_head_is_of_its_request() -> Result<()> {
    let (_pg, db) = still().await?;
    let handler = {
        let db = db.clone();
        move |_: Request<()>| {
            let db = db.clone();
            async move {
                sqlx::query(INSERT).execute(&db).await?;
                // One stream is created in the handler and read later; the other is also created
                // later.
                let of_db = db.clone();
                let asked = async_stream(of_db);
                let later = sticky::carry_stream(stream::once(async move { rows(&db).await }));
                Ok::<_, sqlx::Error>(Response::new((asked, later.boxed())))
            }
        }
    };
    let app = StickyLayer::new(db.clone()).layer(service_fn(handler));
    let (asked, later) = app.oneshot(Request::new(())).await?.into_body();
    assert_eq!(asked.try_collect::<Vec<i64>>().await?.len(), 2);
    assert_eq!(later.try_collect::<Vec<i64>>().await?, [2]);
    Ok(())
}

/// Rows of a query that is created now and runs when the stream is read.
fn async_stream(db: Db<Pg>) -> stream::BoxStream<'static, Result<i64, sqlx::Error>> {
    let db: &'static Db<Pg> = Box::leak(Box::new(db));
    sqlx::query_scalar::<_, i64>("select id from t").fetch(db)
}

#[tokio::test]
async fn layers_and_scopes_inside_of_each_other_agree() -> Result<()> {
    let ((_pa, a), (_pb, b)) = (still().await?, still().await?);
    let handler = {
        let (a, b) = (a.clone(), b.clone());
        move |request: Request<&'static str>| {
            let (a, b) = (a.clone(), b.clone());
            async move {
                if let Some(db) = [("a", &a), ("b", &b)]
                    .into_iter()
                    .find(|(name, _)| name == request.body())
                    .map(|(_, db)| db)
                {
                    sqlx::query(INSERT).execute(db).await?;
                }
                Ok::<_, sqlx::Error>(Response::new((rows(&a).await?, rows(&b).await?)))
            }
        }
    };
    let inner = StickyLayer::new(b.clone()).cookie("sticky_b").layer(service_fn(handler));
    let app = StickyLayer::new(a.clone()).cookie("sticky_a").layer(inner);
    for (wrote, seen) in [("a", (2, 1)), ("b", (1, 2))] {
        let answer = app.clone().oneshot(Request::new(wrote)).await?;
        assert_eq!(*answer.body(), seen, "the request that wrote to {wrote}");
        let cookies: Vec<_> = answer
            .headers()
            .get_all("set-cookie")
            .iter()
            .map(|c| c.to_str().unwrap().to_owned())
            .collect();
        assert!(
            cookies.len() == 1 && cookies[0].starts_with(&format!("sticky_{wrote}=")),
            "{cookies:?}"
        );
        let pair = cookies[0].split(';').next().unwrap();
        let again =
            app.clone().oneshot(Request::builder().header("cookie", pair).body("read")?).await?;
        assert_eq!(*again.body(), seen, "the next one");
    }
    sticky::scope(None, async {
        sqlx::query(INSERT).execute(&a).await?;
        let all = rows(&a).await?;
        assert_eq!(
            sticky::seeing(&a, None, rows(&a)).await?,
            all,
            "a scope inside sees what was written around it"
        );
        anyhow::Ok(())
    })
    .await?;
    sticky::scope(None, async {
        sticky::seeing(&a, None, sqlx::query(INSERT).execute(&a)).await?;
        let all: i64 = sqlx::query_scalar("select count(*) from t").fetch_one(a.primary()).await?;
        assert_eq!(rows(&a).await?, all, "and what was written inside is seen around it");
        assert!(sticky::mark(&a).await.is_some());
        anyhow::Ok(())
    })
    .await
}

/// A cookie with the mark "primary", used when positions are unknown, must expire, however active
/// its user is.
#[tokio::test]
async fn a_user_who_only_reads_is_not_held_to_the_primary_for_ever() -> Result<()> {
    use http::{Request, Response};
    use tower::{Layer, ServiceExt, service_fn};
    let db = Db::<sqlx::Sqlite>::connect("sqlite::memory:").await?;
    sqlx::query("create table t (n int)").execute(&db).await?;
    let handler = {
        let db = db.clone();
        move |request: Request<bool>| {
            let db = db.clone();
            async move {
                if *request.body() {
                    sqlx::query("insert into t values (1)").execute(&db).await?;
                }
                sqlx::query("select count(*) from t").fetch_one(&db).await?;
                Ok::<_, sqlx::Error>(Response::new(()))
            }
        }
    };
    let app = scale_db::StickyLayer::new(db.clone()).layer(service_fn(handler));
    let sent = async |cookie: &str, writes: bool| -> Result<bool> {
        let response =
            app.clone().oneshot(Request::builder().header("cookie", cookie).body(writes)?).await?;
        Ok(response.headers().contains_key("set-cookie"))
    };
    for cookie in
        ["scale_db=2.primary", "scale_db=2.1-ff", "scale_db=2.1-ff-a", "scale_db=1.primary", ""]
    {
        assert!(!sent(cookie, false).await?, "{cookie} is not renewed by a read");
        assert!(sent(cookie, true).await?, "{cookie} is by a write");
    }
    Ok(())
}
