//! Passkeys with a software device: counters, copies of a device, and the maximum number of a
//! user's passkeys. `examples/shop` has the test with a browser.
#![cfg(all(feature = "passkeys", feature = "redis", feature = "postgres", feature = "sqlite"))]
#![allow(clippy::unwrap_used)]

mod common;

use anyhow::{Result, ensure};
use data_encoding::BASE64URL_NOPAD;
use futures_util::future::join_all;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use scale_session::auth::{Passkeys, Records};
use scale_session::{Config, Session, SessionLayer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use testkit::{Postgres, Redis};

const ORIGIN: &str = "https://shop.test";
/// Flags: user present and user verified.
const FLAGS: u8 = 0x05;
/// Flag: attested credential data (a new key) follows.
const ATTESTED: u8 = 0x40;

/// A device that signs every challenge, with any counter.
struct Device {
    id: Vec<u8>,
    key: EcdsaKeyPair,
}

fn base64(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}

/// Encodes a byte string in CBOR.
fn cbor_bytes(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u16).to_be_bytes();
    [&[0x59], &length[..], bytes].concat()
}

fn cbor_text(text: &str) -> Vec<u8> {
    [&[0x60 + text.len() as u8], text.as_bytes()].concat()
}

impl Device {
    fn new(id: &str) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random)
                .unwrap();
        Self { id: id.as_bytes().to_vec(), key }
    }

    fn client_data(options: &str, kind: &str) -> Result<Vec<u8>> {
        let options: Value = serde_json::from_str(options)?;
        let challenge = &options["publicKey"]["challenge"];
        Ok(json!({ "type": kind, "challenge": challenge, "origin": ORIGIN, "crossOrigin": false })
            .to_string()
            .into_bytes())
    }

    fn authenticator_data(flags: u8, counter: u32) -> Vec<u8> {
        [&Sha256::digest(b"shop.test")[..], &[flags], &counter.to_be_bytes()].concat()
    }

    fn answer(&self, response: &Value) -> String {
        let id = base64(&self.id);
        json!({
            "id": id, "rawId": id, "type": "public-key", "extensions": {}, "response": response
        })
        .to_string()
    }

    /// Responds to `navigator.credentials.create`.
    fn register(&self, options: &str) -> Result<String> {
        let point = self.key.public_key().as_ref();
        // {1: 2, 3: -7, -1: 1, -2: x, -3: y}
        let key = [
            &[0xA5, 0x01, 0x02, 0x03, 0x26, 0x20, 0x01, 0x21, 0x58, 0x20],
            &point[1..33],
            &[0x22, 0x58, 0x20],
            &point[33..],
        ];
        let length = (self.id.len() as u16).to_be_bytes();
        let data = [
            &Self::authenticator_data(FLAGS | ATTESTED, 0)[..],
            &[0; 16],
            &length,
            &self.id,
            &key.concat(),
        ]
        .concat();
        let attestation = [
            vec![0xA3],
            cbor_text("fmt"),
            cbor_text("none"),
            cbor_text("attStmt"),
            vec![0xA0],
            cbor_text("authData"),
            cbor_bytes(&data),
        ];
        let client_data = Self::client_data(options, "webauthn.create")?;
        Ok(self.answer(&json!({
            "clientDataJSON": base64(&client_data),
            "attestationObject": base64(&attestation.concat()),
        })))
    }

    /// Responds to `navigator.credentials.get`.
    fn sign_in(&self, options: &str, counter: u32) -> Result<String> {
        let (data, client_data) =
            (Self::authenticator_data(FLAGS, counter), Self::client_data(options, "webauthn.get")?);
        let signed = [&data[..], &Sha256::digest(&client_data)].concat();
        let signature = self.key.sign(&SystemRandom::new(), &signed).unwrap();
        Ok(self.answer(&json!({
            "clientDataJSON": base64(
                &client_data
            ), "authenticatorData": base64(&data), "signature": base64(signature.as_ref()),
        })))
    }
}

/// A site, with its passkeys in a store of one kind.
struct Site {
    layer: SessionLayer,
    passkeys: Passkeys,
}

impl Site {
    fn new(records: &Records) -> Result<Self> {
        Ok(Self {
            layer: SessionLayer::memory(Config::default()),
            passkeys: Passkeys::new("Shop", ORIGIN, records)?,
        })
    }

    fn visitor(&self) -> Session {
        self.layer.open([])
    }

    async fn register(&self, user: &str, device: &Device) -> Result<()> {
        let session = self.visitor();
        let options = self.passkeys.begin_registration(&session, user, user).await?;
        self.passkeys
            .finish_registration(&session, user, "a device", &device.register(&options)?)
            .await?;
        Ok(())
    }

    /// Returns a challenge, and the session that it belongs to.
    async fn ask(&self, user: &str) -> Result<(Session, String)> {
        let session = self.visitor();
        let options = self.passkeys.begin_sign_in(&session, Some(user)).await?;
        Ok((session, options))
    }

    async fn is_let_in(&self, session: &Session, answer: &str) -> bool {
        self.passkeys.finish_sign_in(session, answer).await.is_ok_and(|user| user.is_some())
    }
}

macro_rules! on_every_store {
    ($($case:ident),* $(,)?) => { $(
        mod $case {
            #[tokio::test]
            async fn memory() -> anyhow::Result<()> {
                super::$case(super::Records::memory()).await
            }

            #[tokio::test]
            async fn redis() -> anyhow::Result<()> {
                let server = super::Redis::start().await?;
                super::$case(super::Records::connect(&server.url(), "shop").await?).await
            }

            #[tokio::test]
            async fn postgres() -> anyhow::Result<()> {
                let server = super::Postgres::start(0).await?;
                super::common::migrate(&server.node(0).url()).await?;
                super::$case(super::Records::connect(&server.node(0).url(), "shop").await?).await
            }

            #[tokio::test]
            async fn sqlite() -> anyhow::Result<()> {
                let folder = tempfile::tempdir()?;
                let url = format!("sqlite://{}/p.db", folder.path().display());
                super::$case(super::Records::connect(&url, "shop").await?).await
            }
        }
    )* };
}

on_every_store! { a_copy_of_a_device_is_found, synced_passkeys_count_nothing, a_user_has_ten }

/// The copy received its challenge before the owner's last log-in; and several responses with one
/// counter arrive concurrently.
async fn a_copy_of_a_device_is_found(records: Records) -> Result<()> {
    let (site, device) = (Site::new(&records)?, Device::new("device"));
    site.register("ann", &device).await?;
    let (copys, copys_question) = site.ask("ann").await?;
    let (owners, question) = site.ask("ann").await?;
    assert!(site.is_let_in(&owners, &device.sign_in(&question, 20)?).await);
    assert!(!site.is_let_in(&copys, &device.sign_in(&copys_question, 8)?).await, "20 came before");
    let asked =
        join_all((0..8).map(|_| site.ask("ann"))).await.into_iter().collect::<Result<Vec<_>>>()?;
    let answers = asked
        .iter()
        .map(|(_, question)| device.sign_in(question, 40))
        .collect::<Result<Vec<_>>>()?;
    let let_in = join_all(
        asked.iter().zip(&answers).map(|((session, _), answer)| site.is_let_in(session, answer)),
    )
    .await;
    assert_eq!(let_in.into_iter().filter(|let_in| *let_in).count(), 1, "of eight with one counter");
    let (session, question) = site.ask("ann").await?;
    assert!(
        !site.is_let_in(&session, &device.sign_in(&question, 0)?).await,
        "it has counted before"
    );
    Ok(())
}

/// Passkeys that are synchronized between devices have no counter: any number of them may sign in
/// concurrently.
async fn synced_passkeys_count_nothing(records: Records) -> Result<()> {
    let (site, device) = (Site::new(&records)?, Device::new("device"));
    site.register("ann", &device).await?;
    let asked =
        join_all((0..4).map(|_| site.ask("ann"))).await.into_iter().collect::<Result<Vec<_>>>()?;
    let answers = asked
        .iter()
        .map(|(_, question)| device.sign_in(question, 0))
        .collect::<Result<Vec<_>>>()?;
    let let_in = join_all(
        asked.iter().zip(&answers).map(|((session, _), answer)| site.is_let_in(session, answer)),
    )
    .await;
    assert_eq!(let_in, [true; 4]);
    Ok(())
}

/// Even with concurrent registrations, and with the longest ids.
async fn a_user_has_ten(records: Records) -> Result<()> {
    let site = Site::new(&records)?;
    let mut begun = Vec::new();
    for n in 0..15 {
        let (session, device) = (site.visitor(), Device::new(&format!("{n:0>1000}")));
        let options = site.passkeys.begin_registration(&session, "ann", "ann").await?;
        begun.push((session, device.register(&options)?));
    }
    let finish = begun.iter().map(|(session, answer)| {
        site.passkeys.finish_registration(session, "ann", "a device", answer)
    });
    let refused: Vec<_> =
        join_all(finish).await.into_iter().filter_map(std::result::Result::err).collect();
    assert_eq!(
        (refused.len(), refused[0].status()),
        (5, http::StatusCode::CONFLICT),
        "{}",
        refused[0]
    );
    assert_eq!(site.passkeys.list("ann").await?.len(), 10);
    assert!(site.passkeys.begin_registration(&site.visitor(), "ann", "ann").await.is_err());
    // Tabs: the challenge in each tab lists all ten.
    let session = site.visitor();
    for tab in 0..6 {
        let asked = site.passkeys.begin_sign_in(&session, Some("ann")).await;
        ensure!(asked.is_ok(), "tab {tab}: {}", asked.unwrap_err());
    }
    Ok(())
}
