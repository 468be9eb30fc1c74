//! Writes the session and sets the cookie at the end of a response.

use std::time::SystemTime;

use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue};

use super::Session;
use super::state::{Place, State, Verdict, of_predecessors, predecessors};
use crate::config::{Config, OnStoreError};
use crate::error::Error;
use crate::headers::{CLEAR_SITE_DATA, keep_from_shared_caches};
use crate::store::{Handle, Id, Proof, Saved, Succession};
use crate::value::PREDECESSORS;

impl Session {
    /// Writes the changes, for every status of the response, and adds headers to the response: the
    /// cookie, the directives that keep shared caches from storing the response, and after a logout
    /// `Clear-Site-Data`. The layer calls this method when the handler has returned; without a
    /// layer, the application does. `headers` must contain the response's `Cache-Control` and
    /// `Vary`, if it has any.
    ///
    /// # Errors
    /// The changes could not be saved: answer with 503. Not returned if the
    /// [configuration](Config::on_store_error) lets requests continue without a session, except for
    /// a sign-in, which always reports the error.
    pub async fn close(&self, headers: &mut HeaderMap) -> Result<(), Error> {
        self.end_response(headers).await.map(drop)
    }

    /// Does the same, and returns whether a cookie was set or cleared.
    pub(crate) async fn end_response(&self, headers: &mut HeaderMap) -> Result<bool, Error> {
        let config = &*self.0.config;
        let closed = self.cookie_of_the_end().await;
        let cookie = closed.as_ref().ok().and_then(Option::as_ref);
        let (asked, forgets) = {
            let state = self.0.state.lock().await;
            (
                state.asked,
                config.clear_site_data.header().filter(|_| state.place == Place::Destroyed),
            )
        };
        if !config.unprotected_from_shared_caches && (cookie.is_some() || asked) {
            keep_from_shared_caches(headers, cookie.is_some());
        }
        if let Some(cookie) = cookie {
            headers.append(SET_COOKIE, cookie.clone());
        }
        if let Some(what) = forgets {
            headers.insert(CLEAR_SITE_DATA, HeaderValue::from_static(what));
        }
        closed.map(|cookie| cookie.is_some())
    }

    pub(super) async fn cookie_of_the_end(&self) -> Result<Option<HeaderValue>, Error> {
        let Config { cookie, on_store_error, .. } = &*self.0.config;
        match self.finish().await {
            Ok(Verdict::Leave) => Ok(None),
            Ok(Verdict::Set(value)) => Ok(cookie.set(&value, self.0.config.absolute())),
            Ok(Verdict::Clear) => Ok(cookie.clear()),
            Err(error) => {
                tracing::error!(%error, "session save failed: the changes of the request are lost");
                metrics::counter!("scale_session_errors_total", "during" => "save").increment(1);
                let must_tell = self.0.state.lock().await.becomes.is_some();
                if *on_store_error == OnStoreError::Unavailable || must_tell {
                    Err(error)
                } else {
                    Ok(None)
                }
            }
        }
    }

    pub(super) async fn finish(&self) -> Result<Verdict, Error> {
        match self.settle().await? {
            Verdict::Clear => Ok(Verdict::Clear),
            verdict => Ok(self.0.store.cookie()?.map_or(verdict, Verdict::Set)),
        }
    }

    pub(super) async fn settle(&self) -> Result<Verdict, Error> {
        let mut state = self.0.state.lock().await;
        state.closed = true;
        if let Some(owner) = state.becomes
            && !matches!(state.place, Place::Destroyed)
        {
            self.replace(&mut state, owner).await?;
            state.becomes = None;
            return Ok(state.told());
        }
        match state.place {
            // The cookie belongs to the client's other session now.
            Place::Unread | Place::Unavailable | Place::Replaced(_) | Place::Stale(_) => {
                return Ok(Verdict::Leave);
            }
            Place::Destroyed => return Ok(self.farewell(&state)),
            Place::Nowhere if state.changes.is_empty() => return Ok(self.farewell(&state)),
            Place::Nowhere => {
                let changes = std::mem::take(&mut state.changes);
                self.make(&mut state, None, changes).await?;
            }
            Place::At(handle, renewed) => {
                let due = SystemTime::now().duration_since(renewed).unwrap_or_default()
                    >= self.0.config.renewal();
                let renew = (state.renew || state.unseen || due) && !state.tell;
                let changes = std::mem::take(&mut state.changes);
                if renew || !changes.is_empty() {
                    let renewal = renew.then(|| self.renewal());
                    if self.0.store.save(&handle, &changes, renewal).await? != Saved::Done {
                        // The session was logged out or has another identity now: the write is
                        // dropped, as if that request had come last, and this request must not
                        // change the cookie.
                        metrics::counter!("scale_session_writes_dropped_total").increment(1);
                        return Ok(Verdict::Leave);
                    }
                    state.unseen &= !renew;
                }
                if state.rotate
                    && state.is_current
                    && !state.tell
                    && let Some(id) = &state.id
                {
                    let next = id.rotated().map_err(|e| Error::Store(Box::new(e)))?;
                    let (from, to): (Proof, Proof) = (id.proof(), next.proof());
                    // If another request has rotated the id, the id of that request stays.
                    if self.0.store.rotate(&handle, &from, &to).await? == Saved::Done {
                        (state.id, state.tell) = (Some(next), true);
                    }
                }
            }
        }
        Ok(state.told())
    }

    /// There is no session: clears any cookie that the client sent.
    pub(super) fn farewell(&self, state: &State) -> Verdict {
        if self.0.config.cookie.presents(&state.cookies) { Verdict::Clear } else { Verdict::Leave }
    }

    /// Continues the session under an id that nobody has seen, if it still belongs to the same
    /// user. The new session ends when the old one would have ended.
    pub(crate) async fn go_on(&self, state: &mut State) -> Result<Option<Handle>, Error> {
        let Place::At(old, _) = state.place else { return Ok(None) };
        let id = Id::random(old.owner().copied()).map_err(|e| Error::Store(Box::new(e)))?;
        let (handle, proof) = (id.handle(), id.proof());
        let mut changes = std::mem::take(&mut state.changes);
        let mut before = state.field(PREDECESSORS).map(predecessors).unwrap_or_default();
        before.insert(0, old);
        changes.set(PREDECESSORS, Some(of_predecessors(before)));
        let next = Succession {
            handle: &handle,
            proof: &proof,
            idle: self.0.config.idle(),
            grace: self.0.config.grace(),
        };
        if self.0.store.succeed(&old, &next, &changes).await? != Saved::Done {
            // The session was logged out or revoked in the meantime, or another request was first:
            // the session of that request stays.
            state.place = Place::Replaced(old);
            metrics::counter!("scale_session_writes_dropped_total").increment(1);
            return Ok(None);
        }
        state.begin_at(id);
        Ok(Some(handle))
    }
}

pub(super) fn written(saved: Saved) -> Result<(), Error> {
    match saved {
        Saved::Done => Ok(()),
        Saved::Frozen => Err(Error::Replaced),
        Saved::Stale | Saved::Gone => Err(Error::Gone),
    }
}
