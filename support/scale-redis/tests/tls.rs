//! TLS to a real server. The trusted roots are the system's, so a separate process is started with
//! the roots to trust.
#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used)]

use std::io::Read;

use anyhow::{Context, Result};
use testkit::{Authority, Redis};

#[tokio::test]
async fn a_server_is_known_by_its_certificate() -> Result<()> {
    let (ours, others) = (Authority::new()?, Authority::new()?);
    let server = Redis::start_with_tls(&ours).await?;
    let url = server.tls_url().context("a port for TLS")?;
    for (trusted, expected) in [(&ours, "answered in secret"), (&others, "refused")] {
        let mut helper = testkit::helper("helper_that_speaks_tls")?;
        helper.env("TLS_URL", &url).env("SSL_CERT_FILE", trusted.file()).env_remove("SSL_CERT_DIR");
        let mut process = helper.spawn()?;
        let mut said = String::new();
        process.stdout.take().context("its words")?.read_to_string(&mut said)?;
        process.wait()?;
        assert!(said.contains(expected), "{said}");
    }
    Ok(())
}

#[test]
#[allow(clippy::print_stdout)]
fn helper_that_speaks_tls() -> Result<()> {
    let Ok(url) = std::env::var("TLS_URL") else { return Ok(()) };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        match scale_redis::Redis::connect(&url).await {
            Ok(mut redis) => {
                let _: () =
                    redis::cmd("SET").arg("key").arg("value").query_async(&mut redis).await?;
                println!("answered in secret");
            }
            Err(error) => println!("refused: {error}"),
        }
        Ok(())
    })
}
