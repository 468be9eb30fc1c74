//! The contract of a store, on a database that all cases share.

use anyhow::Result;
use postgres_limits::PostgresStore;
use scale_limit::Limiter;
use testkit::{Postgres, Shared};

/// Returns the limiters of two processes.
async fn connect(app: &str) -> Result<([Limiter; 2], ())> {
    static SERVER: Shared<Postgres> = Shared::new();
    let url = SERVER.get(|| Postgres::start(0)).await?.node(0).url();
    let limiter = async || -> Result<Limiter> {
        let pool = sqlx::PgPool::connect(&url).await?;
        PostgresStore::create_table(&pool).await?;
        Ok(Limiter::with_store(PostgresStore::new(pool), app))
    };
    Ok(([limiter().await?, limiter().await?], ()))
}

scale_limit::store_contract!(postgres, crate::connect);
