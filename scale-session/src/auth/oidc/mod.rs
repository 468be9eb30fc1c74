//! Log-in with an account elsewhere: OpenID Connect, by authorization code with PKCE.
//!
//! | step | protects against |
//! | --- | --- |
//! | [`begin`](OidcClient::begin) keeps `state`, `nonce` and the PKCE verifier in the visitor's session, for 10 minutes | a callback of a log-in that another person began (log-in CSRF), a stolen code |
//! | [`finish`](OidcClient::finish) removes them before the first request to the provider | a callback sent twice |
//! | the ID token's signature is verified with the provider's keys: RS256, ES256 or EdDSA, never `none` or HMAC | a forged token |
//! | keys are fetched again when no known key has signed a token, at most once a minute; while that fails the known keys stay in use | rotation of keys; a flood of such tokens |
//! | issuer, audience, authorized party, expiry and nonce are checked | a token of another provider, site or log-in (mix-up) |
//! | responses of more than 1 MiB are refused | a provider that malfunctions |
//!
//! The callback comes from another site: the session cookie must be `SameSite=Lax`, the default,
//! not `Strict`. Users stay in the application's tables: find them by [`Identity::issuer`] and
//! [`Identity::subject`] together, never by an address alone, which may belong to another person
//! later.

mod id_token;

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse,
    BasicTokenType,
};
use oauth2::{
    AsyncHttpClient, AuthUrl, AuthorizationCode, Client, ClientId, ClientSecret, CsrfToken,
    EndpointNotSet, EndpointSet, ExtraTokenFields, PkceCodeChallenge, PkceCodeVerifier,
    RedirectUrl, Scope, StandardRevocableToken, StandardTokenResponse, TokenUrl,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::id_token::IdToken;
use super::access::VerifyingKey;
use super::error::Error;
use super::steps::{self, Step};
use super::{random, same};
use crate::session::Session;

/// Time that a user has to log in at the provider.
const LOGIN_WITHIN: Duration = Duration::from_mins(10);
/// Maximum length of a response.
const LONGEST_ANSWER: usize = 1_024 * 1_024;
/// Minimum interval between two fetches of the keys, after a success and after a failure.
const KEYS_APART: Duration = Duration::from_mins(1);
const KEYS_APART_FAILED: Duration = Duration::from_secs(5);
/// Time for which keys are used without being fetched again.
const KEYS_LAST: Duration = Duration::from_hours(1);
/// Maximum length of a callback's query.
const LONGEST_QUERY: usize = 8 * 1_024;

type BoxError = Box<dyn StdError + Send + Sync>;

/// Sends requests to the provider, through the application's own HTTP client. The client must not
/// follow redirects, must give up after a few seconds, and must not read more than 1 MiB.
///
/// ```
/// # use scale_session::auth::oidc::HttpClient;
/// struct Client; // for example of reqwest
/// impl HttpClient for Client {
///     async fn send(
///         &self,
///         request: http::Request<Vec<u8>>,
///     ) -> Result<http::Response<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
///         # let _ = request;
///         // let response = self.0.execute(request.try_into()?).await?;
///         Err("no network in an example".into())
///     }
/// }
/// ```
pub trait HttpClient: Send + Sync {
    /// Returns the response, for every status.
    fn send(
        &self,
        request: Request<Vec<u8>>,
    ) -> impl Future<Output = Result<Response<Vec<u8>>, BoxError>> + Send;
}

/// A provider that users log in with. Create one per provider and process.
///
/// ```no_run
/// # use scale_session::auth::{Error, oidc::{HttpClient, OidcClient}};
/// # use scale_session::Session;
/// # async fn example(http: impl HttpClient, session: Session, query: &str) -> Result<(), Error> {
/// let google = OidcClient::discover(
///     &http,
///     "https://accounts.google.com",
///     "client id",
///     Some("client secret"),
///     "https://shop.example.com/log-in/google",
/// ).await?;
///
/// // GET /log-in/google/begin: redirect to this address.
/// let address = google.begin(&session, &["email"]).await?;
///
/// // GET /log-in/google, with the query of the browser's request.
/// let identity = google.finish(&http, &session, query).await?;
/// let user = format!("find or create the user of {} {}", identity.issuer, identity.subject);
/// session.sign_in(&user, "a browser").await?;
/// # Ok(()) }
/// ```
pub struct OidcClient {
    issuer: String,
    client_id: String,
    oauth: OauthClient,
    jwks_uri: String,
    keys: Mutex<Keys>,
    fetching: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for OidcClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OidcClient")
            .field("issuer", &self.issuer)
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

/// Identity at the provider.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// Issuer URL of the provider.
    pub issuer: String,
    /// Id of the user at the provider. It never changes.
    pub subject: String,
    /// Address of the user, with scope `email`.
    pub email: Option<String>,
    /// `true` if the provider has verified that the address is the user's.
    pub email_verified: bool,
    /// Name of the user, with scope `profile`.
    pub name: Option<String>,
    /// All claims of the ID token.
    pub claims: serde_json::Map<String, serde_json::Value>,
}

type OauthClient = Client<
    BasicErrorResponse,
    StandardTokenResponse<IdTokenField, BasicTokenType>,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct IdTokenField {
    id_token: Option<String>,
}

impl ExtraTokenFields for IdTokenField {}

#[derive(Clone, Default)]
struct Keys {
    known: Vec<Arc<VerifyingKey>>,
    fetched: Option<Instant>,
    /// Time of the last request for the keys, which may have failed or be in progress.
    asked: Option<Instant>,
    has_failed: bool,
}

/// A log-in in progress, in the visitor's session.
#[derive(Clone, Serialize, Deserialize)]
struct Pending {
    issuer: String,
    state: String,
    nonce: String,
    verifier: String,
    since: u64,
}

impl Step for Pending {
    const FIELD: &'static str = ".step.oidc";
    const LASTS: Duration = LOGIN_WITHIN;

    fn since(&self) -> u64 {
        self.since
    }
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
}

impl OidcClient {
    /// Fetches the provider's metadata and keys. `redirect` is this site's callback, as registered
    /// with the provider. Without a secret the client is public, and PKCE alone protects the code.
    ///
    /// # Errors
    /// [`Error::Provider`] if the provider does not answer, or answers for another issuer;
    /// [`Error::Setting`] for invalid addresses.
    pub async fn discover(
        http: &impl HttpClient,
        issuer: &str,
        client_id: &str,
        client_secret: Option<&str>,
        redirect: &str,
    ) -> Result<Self, Error> {
        let is_local =
            |uri: &http::Uri| matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if !issuer
            .parse::<http::Uri>()
            .is_ok_and(|uri| uri.scheme_str() == Some("https") || is_local(&uri))
        {
            return Err(Error::Setting("the issuer must be an address that begins with https://"));
        }
        let found: Discovery = get_json(
            http,
            &format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/')),
        )
        .await?;
        if found.issuer != issuer {
            return Err(Error::Provider("the provider's metadata names another issuer".into()));
        }
        let wrong = |_| {
            Error::Setting("an endpoint of the provider, or the redirect address, is not a URL")
        };
        let mut oauth = Client::new(ClientId::new(client_id.into()))
            .set_auth_uri(AuthUrl::new(found.authorization_endpoint).map_err(wrong)?)
            .set_token_uri(TokenUrl::new(found.token_endpoint).map_err(wrong)?)
            .set_redirect_uri(RedirectUrl::new(redirect.into()).map_err(wrong)?);
        if let Some(secret) = client_secret {
            oauth = oauth.set_client_secret(ClientSecret::new(secret.into()));
        }
        let client = Self {
            issuer: found.issuer,
            client_id: client_id.to_owned(),
            oauth,
            jwks_uri: found.jwks_uri,
            keys: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
        };
        let known = client.fetch_keys(http).await?;
        *client.keys.lock() =
            Keys { known, fetched: Some(Instant::now()), asked: None, has_failed: false };
        Ok(client)
    }

    /// Returns the address to redirect the visitor to. The scope `openid` is always included.
    ///
    /// # Errors
    /// [`Error::Session`]; [`Error::Random`].
    pub async fn begin(&self, session: &Session, scopes: &[&str]) -> Result<String, Error> {
        let secret = || Ok::<_, Error>(data_encoding::BASE64URL_NOPAD.encode(&random::<32>()?));
        let (state, nonce) = (secret()?, secret()?);
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let (issuer, since) = (self.issuer.clone(), super::signed_token::now());
        let pending = Pending {
            issuer,
            state: state.clone(),
            nonce: nonce.clone(),
            verifier: verifier.secret().clone(),
            since,
        };
        steps::begin(session, pending).await?;
        let request = self
            .oauth
            .authorize_url(|| CsrfToken::new(state))
            .set_pkce_challenge(challenge)
            .add_extra_param("nonce", nonce);
        let scopes = scopes
            .iter()
            .filter(|scope| **scope != "openid")
            .map(|scope| Scope::new((*scope).into()));
        let (address, _) = request.add_scope(Scope::new("openid".into())).add_scopes(scopes).url();
        Ok(address.into())
    }

    /// Finishes a log-in and returns the identity. `query` is the query of the callback, without
    /// the question mark.
    ///
    /// # Errors
    /// [`Error::Denied`] if the visitor or the provider cancelled the log-in, or if the callback
    /// does not belong to a log-in that this session has begun; [`Error::Provider`] if the provider
    /// does not answer, or sends an invalid response; [`Error::Session`].
    pub async fn finish(
        &self,
        http: &impl HttpClient,
        session: &Session,
        query: &str,
    ) -> Result<Identity, Error> {
        let parameters = Parameters::read(query)?;
        let pending = self.take(session, &parameters.state).await?;
        if let Some(error) = parameters.error {
            return Err(Error::Denied(error));
        }
        if parameters.issuer.is_some_and(|issuer| issuer != self.issuer) {
            return Err(Error::Denied("the callback is from another provider".into()));
        }
        let code =
            parameters.code.ok_or_else(|| Error::Denied("the callback has no code".into()))?;
        let client = ForOauth(http);
        let asked = self
            .oauth
            .exchange_code(AuthorizationCode::new(code))
            .set_pkce_verifier(PkceCodeVerifier::new(pending.verifier));
        let answer = asked
            .request_async(&client)
            .await
            .map_err(|error| Error::Provider(refusal(&error).into()))?;
        let token = answer
            .extra_fields()
            .id_token
            .clone()
            .ok_or_else(|| Error::Provider("the response has no ID token".into()))?;
        let token = IdToken::read(&token)
            .ok_or_else(|| Error::Provider("the ID token cannot be decoded".into()))?;
        let claims = self.verify(http, &token).await?;
        token
            .check(&claims, &self.issuer, &self.client_id, &pending.nonce)
            .map_err(|why| Error::Provider(why.into()))?;
        Ok(identity(&self.issuer, claims))
    }

    /// Takes the log-in out of the session: it can be finished once.
    async fn take(&self, session: &Session, state: &str) -> Result<Pending, Error> {
        let found = steps::take(session, |pending: &Pending| {
            same(pending.state.as_bytes(), state.as_bytes())
        })
        .await?;
        let found = found.filter(|pending| pending.issuer == self.issuer);
        found.ok_or_else(|| {
            Error::Denied("this session has not begun such a log-in, or it has expired".into())
        })
    }

    /// Returns the claims of a token, if the provider has signed it.
    async fn verify(
        &self,
        http: &impl HttpClient,
        token: &IdToken,
    ) -> Result<serde_json::Map<String, serde_json::Value>, Error> {
        let known = self.keys.lock().clone();
        let is_old = known.fetched.is_none_or(|at| at.elapsed() > KEYS_LAST);
        let claims = known.claims(token);
        if let Some(claims) = claims.clone().filter(|_| !is_old) {
            return Ok(claims);
        }
        match self.renew_keys(http, known.fetched).await {
            Ok(()) => self.keys.lock().claims(token),
            // Known keys stay valid while the provider does not answer.
            Err(error) if claims.is_some() => {
                tracing::warn!(
                    %error,
                    issuer = self.issuer,
                    "fetching the provider's keys failed: the known keys stay in use",
                );
                claims
            }
            Err(error) => return Err(error),
        }
        .ok_or_else(|| Error::Provider("no key of the provider has signed the ID token".into()))
    }

    /// Fetches the keys, unless another task has since `seen`, or the last attempt was too recent.
    /// One fetch runs at a time.
    async fn renew_keys(&self, http: &impl HttpClient, seen: Option<Instant>) -> Result<(), Error> {
        let _turn = self.fetching.lock().await;
        {
            let mut keys = self.keys.lock();
            let apart = if keys.has_failed { KEYS_APART_FAILED } else { KEYS_APART };
            let is_too_soon = keys.asked.is_some_and(|at| at.elapsed() < apart);
            if keys.fetched != seen || is_too_soon && !keys.has_failed {
                return Ok(());
            }
            if is_too_soon {
                return Err(Error::Provider(
                    "fetching the provider's keys failed a moment ago".into(),
                ));
            }
            (keys.asked, keys.has_failed) = (Some(Instant::now()), true);
        }
        let known = self.fetch_keys(http).await?;
        let mut keys = self.keys.lock();
        (keys.known, keys.fetched, keys.has_failed) = (known, Some(Instant::now()), false);
        Ok(())
    }

    async fn fetch_keys(&self, http: &impl HttpClient) -> Result<Vec<Arc<VerifyingKey>>, Error> {
        let json = get(http, &self.jwks_uri).await?;
        let text = String::from_utf8(json)
            .map_err(|_| Error::Provider("the provider's keys are not UTF-8".into()))?;
        let known =
            VerifyingKey::from_jwks(&text).map_err(|error| Error::Provider(Box::new(error)))?;
        Ok(known.into_iter().map(Arc::new).collect())
    }
}

impl Keys {
    /// Returns the claims of a token, if one of the keys that the token may name has signed it.
    fn claims(&self, token: &IdToken) -> Option<serde_json::Map<String, serde_json::Value>> {
        self.known.iter().filter(|key| token.is_by(key)).find_map(|key| token.claims(key))
    }
}

/// Parameters of a callback.
struct Parameters {
    state: String,
    code: Option<String>,
    error: Option<String>,
    issuer: Option<String>,
}

impl Parameters {
    fn read(query: &str) -> Result<Self, Error> {
        let mut found = Self { state: String::new(), code: None, error: None, issuer: None };
        if query.len() > LONGEST_QUERY {
            return Err(Error::Denied("the callback's query is too long".into()));
        }
        for (name, value) in oauth2::url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "state" => found.state = value.into_owned(),
                "code" => found.code = Some(value.into_owned()),
                "iss" => found.issuer = Some(value.into_owned()),
                "error" => {
                    found.error =
                        Some(value.chars().filter(char::is_ascii_graphic).take(100).collect());
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

fn identity(issuer: &str, claims: serde_json::Map<String, serde_json::Value>) -> Identity {
    let text =
        |name: &str| claims.get(name).and_then(serde_json::Value::as_str).map(ToOwned::to_owned);
    // Some providers send a string instead of a boolean.
    let verified = claims
        .get("email_verified")
        .is_some_and(|value| value.as_bool() == Some(true) || value.as_str() == Some("true"));
    Identity {
        issuer: issuer.to_owned(),
        subject: text("sub").unwrap_or_default(),
        email: text("email"),
        email_verified: verified,
        name: text("name"),
        claims,
    }
}

async fn get_json<T: serde::de::DeserializeOwned>(
    http: &impl HttpClient,
    address: &str,
) -> Result<T, Error> {
    serde_json::from_slice(&get(http, address).await?)
        .map_err(|error| Error::Provider(Box::new(error)))
}

async fn get(http: &impl HttpClient, address: &str) -> Result<Vec<u8>, Error> {
    let request =
        Request::get(address).header(http::header::ACCEPT, "application/json").body(Vec::new());
    let request =
        request.map_err(|_| Error::Setting("an endpoint of the provider is not a URL"))?;
    let response =
        bounded(http.send(request).await).map_err(|error| Error::Provider(Box::new(error)))?;
    if !response.status().is_success() {
        return Err(Error::Provider(
            format!("the provider answered {} for {address}", response.status()).into(),
        ));
    }
    Ok(response.into_body())
}

/// Adapts the application's client to `oauth2`.
struct ForOauth<'h, H>(&'h H);

impl<'c, H: HttpClient> AsyncHttpClient<'c> for ForOauth<'_, H> {
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Vec<u8>>, Failed>> + Send + 'c>>;

    fn call(&'c self, request: Request<Vec<u8>>) -> Self::Future {
        Box::pin(async move { bounded(self.0.send(request).await) })
    }
}

/// Failure of a request.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(BoxError);

fn bounded(answer: Result<Response<Vec<u8>>, BoxError>) -> Result<Response<Vec<u8>>, Failed> {
    match answer {
        Ok(response) if response.body().len() > LONGEST_ANSWER => {
            Err(Failed("the response is longer than 1 MiB".into()))
        }
        other => other.map_err(Failed),
    }
}

/// Describes an error without the response body, which may contain tokens.
fn refusal(error: &oauth2::RequestTokenError<Failed, BasicErrorResponse>) -> String {
    match error {
        oauth2::RequestTokenError::ServerResponse(claims) => {
            format!("the provider refused the code: {}", claims.error())
        }
        oauth2::RequestTokenError::Request(failed) => {
            format!("the provider does not answer: {failed}")
        }
        _ => "the provider's response cannot be decoded".to_owned(),
    }
}
