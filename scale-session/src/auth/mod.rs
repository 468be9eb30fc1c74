//! Authentication: passwords, second factors, mailed tokens, remember-me cookies, and CSRF
//! protection.
//!
//! Each part works on its own, and none needs a table of users: the application stores the strings
//! that they take and return. Events that must happen only once in a fleet (a code used, a token
//! redeemed, a cookie exchanged) are recorded in a [`OneTimeStore`], in process, in a database, or
//! on Redis.
//!
//! | part | function |
//! | --- | --- |
//! | [`Passwords`] | argon2id with OWASP's parameters, bounded memory, equal time for unknown users, pepper, rehash |
//! | [`Totp`], [`recovery`] | second factors: codes of an app, used once; codes on paper, used once |
//! | [`Tokens`] | mailed links that end when used, when expired, and when the values they are bound to change |
//! | [`AccountLinks`] | mails with links: verify or change an address, reset a password, sign in |
//! | [`KnownDevices`] | recognises new devices, for notices of their sign-ins |
//! | [`Remember`] | a remember-me cookie, exchanged at each use: reuse reveals a theft |
//! | [`SessionEpochs`] | sign out everywhere, in one step |
//! | [`CsrfLayer`] | refuses requests from other sites' pages |
//! | [`Access`] (feature `jwt`) | tokens for APIs: signed (EdDSA, ES256, RS256, HS256), short-lived, verified locally; publishes its keys |
//! | [`ApiTokens`] | secrets that users give to programs: with abilities, an expiry, and a list for revocation |
//! | `Passkeys` (feature `passkeys`) | log-in by a device that its user unlocks: WebAuthn, with or without a user name |
//! | `OidcClient` (feature `oidc`) | log-in with an account elsewhere: OpenID Connect with PKCE |
//! | [`Permissions`] | permissions of users, as the application and its cache report them; a layer that enforces them |
//! | [`AuditLog`] | a record of events in which every later change can be detected |
//!
//! This module does not limit guesses. `scale-limit` does (`LoginGuard`, and its limits for
//! one-time codes). Check those limits first, by the account's name as stored.
//!
//! # Guarantees
//!
//! | when | then |
//! | --- | --- |
//! | 500 log-ins run at once | as many hashes are computed at once as memory allows; others wait, and beyond the queue get [`Error::Busy`] at once |
//! | a user is unknown, or has no password | [`Passwords::verify`] takes as long as for a wrong password, with the current parameters |
//! | 64 requests present one code, token or recovery code at once, to several processes | one succeeds |
//! | the one-time store does not answer | [`Error::OneTimeStore`]: access is denied |
//! | all sign-ins of a user end | epochs read before are invalid on every server; epochs read after are valid |
//! | a permission is removed, an account deleted | the next request is refused, on every server, as soon as the application reports the change; the session of a deleted account ends |
//! | all of a user's sessions end ([`SessionLayer::remember`](crate::SessionLayer::remember)) | no remember-me cookie restores them |
//! | an API token is revoked | the next request with it is refused, on every server |
//! | a mailed link is opened by a scanner, sent twice, or kept until the password has changed | stays valid; works once; refused |
//! | a passkey's device has not verified its user, or the passkey was removed | refused |
//! | a provider's callback reaches a browser that has not begun the log-in | refused, without a request to the provider |
//! | a remember-me cookie is used twice | the family is revoked, except within 30 s of the last exchange, when a lost response or a late tab may have caused it |
//!
//! # Against OWASP ASVS 5.0
//!
//! | requirement | met by | tested by |
//! | --- | --- | --- |
//! | 6.2.1, 6.2.9 lengths | [`Rules`](password::Rules): at least 8 by default, 1,024 bytes allowed | `rules_of_passwords` |
//! | 6.2.4 common passwords | [`Rules::banned`](password::Rules::banned) with a list of your choice | `rules_of_passwords` |
//! | 6.2.8 verified as received | no trimming, no change of case, no truncation; an imported bcrypt hash covers 72 bytes, and a longer input is not rehashed | `passwords_are_taken_as_they_are`, `what_bcrypt_has_not_read_is_not_kept` |
//! | 11.4.2 slow hashes | argon2id, 19 MiB, 2 passes | `hashes_are_phc_strings_with_owasps_numbers` |
//! | 6.3.8 valid users are not revealed by timing | dummy work | `nobody_takes_as_long_as_somebody` |
//! | 6.5.1 codes used once | the one-time store | `a_code_is_good_once_whoever_sends_it` |
//! | 6.5.2, 6.5.3 recovery codes random and hashed | 120 bits from the system's generator, SHA-256 | `recovery_codes_are_random_and_stored_hashed` |
//! | 6.5.5 short-lived codes: 30 s by a clock, 10 minutes by mail | clock-based codes: 30 s with [`Totp::skew`] of 0; the default accepts a step before and after, as RFC 6238 advises. Links to sign in: 10 minutes | `codes_of_rfc_6238`, `nobody_is_flooded_and_nobody_is_told_of` |
//! | 6.4.1, 6.4.3 resets that are random, expire and work once | purpose, subject, expiry and the bound values are part of a token | `a_token_is_good_for_what_it_was_made_for` |
//! | 7.4.2, 7.4.3, 7.5.2 ending all sessions, after a change of password for one | [`SessionEpochs::end_all`] | `all_sign_ins_end_in_one_step` |
//! | 7.4.5 administrators end a user's sessions | [`SessionLayer::revoke_all_of`](crate::SessionLayer::revoke_all_of); also those in which the user acts as another one | `devices_are_listed_and_ended`, `acting_ends_with_who_acts` |
//! | 7.5.2 users see and end their sessions | [`Session::devices`](crate::Session::devices), [`revoke`](crate::Session::revoke) | `devices_are_listed_and_ended`, `who_acts_is_listed` |
//! | 7.5.3 identity confirmed again before sensitive actions | [`Session::is_confirmed_within`](crate::Session::is_confirmed_within) | `states_follow_one_another` |
//! | 7.2.4 a new id at each sign-in, and no way to it from the old one | [`Session::sign_in`](crate::Session::sign_in) | `a_planted_id_leads_nowhere`, `a_worthless_id_is_worth_nothing_after_a_reload`, `after_a_logout_no_earlier_id_is_somebody` |
//! | 7.4.2 sessions of a deleted account end; 8.3.1 permissions are enforced by the server | [`Permissions`] | `a_permission_taken_away_and_a_deleted_user_count_on_all_servers` |
//! | 6.2.12 breached passwords | [`breaches`](password::breaches()) | `breached_passwords_are_found_by_the_rest_of_their_hash` |
//! | 6.4.1, 6.4.3 links for a reset | [`AccountLinks`] | `a_reset_ends_with_the_password_it_was_for`, `what_the_notice_advises_ends_the_link` |
//! | 6.3.5, 6.3.7 users are notified of new devices and changes | [`KnownDevices`], [`AccountLinks::new_device`], [`AccountLinks::password_changed`] | `a_browser_is_known_by_the_last_users_of_it` |
//! | 6.3.3, 6.5.7 a phishing-resistant second factor, with user verification | `Passkeys` | the shop's `a_person_logs_in_by_a_passkey`; `a_copy_of_a_device_is_found` |
//! | 10.2.1, 10.5.1 to 10.5.3 state, PKCE, nonce, issuer and audience of log-ins elsewhere | `OidcClient` | `somebody_logs_in_with_an_account_elsewhere`, `what_comes_back_must_be_what_was_begun`, `claims_are_those_of_this_log_in` |
//! | 7.1.2 a limit on the sessions of a user | [`Config::sessions_per_user`](crate::Config::sessions_per_user) | `sessions_beyond_the_cap_end`, `log_ins_at_once_do_not_end_each_other` |
//! | 14.3.1 data in the browser is cleared at a logout | [`Config::clear_site_data`](crate::Config::clear_site_data) | `a_logout_clears_what_is_configured` |
//! | 9.1.1 tokens verified before use, 9.1.2 allowed algorithms, 9.1.3 keys from the configuration only | [`Access`] | `algorithms_and_keys_are_ours_to_choose` |
//! | 9.2.1 to 9.2.3 validity, type and audience of tokens | [`Access`] | `claims_are_there_and_what_they_should_be` |
//! | 16.4.2 logs that cannot be changed | [`AuditLog`]: changes are detected, not prevented | `of_a_million_records_any_change_is_found` |
//! | 3.5.1, 3.5.2 forged requests | [`CsrfLayer`] | `a_table_of_requests_from_other_sites`, `browsers_that_say_nothing_need_a_token` |

#[cfg(feature = "jwt")]
pub mod access;
pub mod account_links;
pub mod api_token;
pub mod audit;
pub mod csrf;
mod error;
pub mod known_devices;
pub mod one_time_store;
#[cfg(all(any(doc, doctest), feature = "foreign-hashes"))]
#[doc = include_str!("../../MIGRATION.md")]
pub mod migration {}
#[cfg(feature = "oidc")]
pub mod oidc;
#[cfg(feature = "passkeys")]
pub mod passkeys;
pub mod password;
pub mod permissions;
pub mod records;
pub mod recovery;
pub mod remember;
pub mod session_epoch;
mod signed_token;
#[cfg(any(feature = "oidc", feature = "passkeys"))]
mod steps;
pub mod token;
pub mod totp;

#[cfg(feature = "jwt")]
pub use self::access::Access;
pub use self::account_links::AccountLinks;
pub use self::api_token::ApiTokens;
pub use self::audit::AuditLog;
pub use self::csrf::CsrfLayer;
pub use self::error::Error;
pub use self::known_devices::KnownDevices;
#[cfg(feature = "oidc")]
pub use self::oidc::OidcClient;
pub use self::one_time_store::OneTimeStore;
#[cfg(feature = "passkeys")]
pub use self::passkeys::Passkeys;
pub use self::password::Passwords;
pub use self::permissions::Permissions;
pub use self::records::Records;
pub use self::remember::Remember;
pub use self::session_epoch::SessionEpochs;
pub use self::token::Tokens;
pub use self::totp::Totp;

/// Returns random bytes from the operating system.
fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}

/// Compares two secrets in constant time: the duration does not reveal where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).fold(0, |differs, (a, b)| std::hint::black_box(differs | (a ^ b))) == 0
}
