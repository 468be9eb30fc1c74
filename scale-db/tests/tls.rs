//! TLS to real servers, with the certificate of a private authority.
#![cfg(all(feature = "postgres", feature = "mysql", feature = "tls"))]
#![allow(clippy::unwrap_used)]

use anyhow::Result;
use scale_db::{Db, Error};
use sqlx::{MySql, Postgres as Pg};
use testkit::{Authority, MariaDb, Postgres};

#[tokio::test]
async fn postgres_is_spoken_to_in_secret_and_known_by_its_certificate() -> Result<()> {
    let (ours, others) = (Authority::new()?, Authority::new()?);
    let pg = Postgres::start(1).await?;
    for node in pg.nodes() {
        node.offer_tls(&ours).await?;
    }
    let url = |n: usize, authority: &Authority| {
        format!(
            "{}?sslmode=verify-full&sslrootcert={}",
            pg.node(n).url(),
            authority.file().display()
        )
    };
    let db = Db::<Pg>::builder(url(0, &ours)).replica(url(1, &ours)).connect().await?;
    testkit::eventually("both nodes to be fit", async || {
        db.nodes().iter().all(|n| n.fit).then_some(())
    })
    .await?;
    let secret = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    assert!(sqlx::query_scalar::<_, bool>(secret).fetch_one(db.primary()).await?);
    assert!(sqlx::query_scalar::<_, bool>(secret).fetch_one(db.replica()).await?);
    // The monitor's connections too.
    let plain = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) \
        where not ssl and application_name = ''
                 and backend_type = 'client backend'";
    assert_eq!(sqlx::query_scalar::<_, i64>(plain).fetch_one(db.primary()).await?, 0);
    let refused = Db::<Pg>::connect(&url(0, &others)).await;
    assert!(
        matches!(&refused, Err(Error::Unreachable(e)) if e.to_string().contains("certificate")),
        "{refused:?}"
    );
    // By default, TLS is used if the server offers it.
    let default = Db::<Pg>::connect(&pg.node(0).url()).await?;
    assert!(sqlx::query_scalar::<_, bool>(secret).fetch_one(default.primary()).await?);
    Ok(())
}

#[tokio::test]
async fn mariadb_is_spoken_to_in_secret_and_known_by_its_certificate() -> Result<()> {
    let (ours, others) = (Authority::new()?, Authority::new()?);
    let maria = MariaDb::start(0).await?;
    maria.node(0).offer_tls(&ours).await?;
    let url = |authority: &Authority| {
        format!(
            "{}?ssl-mode=VERIFY_IDENTITY&ssl-ca={}",
            maria.node(0).url(),
            authority.file().display()
        )
    };
    let db = Db::<MySql>::connect(&url(&ours)).await?;
    let cipher = "select variable_value from information_schema.session_status \
        where variable_name = 'SSL_CIPHER'";
    let cipher: String = sqlx::query_scalar(cipher).fetch_one(db.primary()).await?;
    assert!(cipher.starts_with("TLS"), "{cipher}");
    let refused = Db::<MySql>::connect(&url(&others)).await;
    assert!(
        matches!(&refused, Err(Error::Unreachable(e)) if e.to_string().contains("certificate")),
        "{refused:?}"
    );
    Ok(())
}
