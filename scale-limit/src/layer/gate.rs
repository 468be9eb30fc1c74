//! Verdict on a request: access lists first, then all policies that apply to it.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use smallvec::SmallVec;

use super::headers::{self, HeaderOptions, Headers};
use super::refusal::Refusal;
use super::settle::ResponseActions;
use super::throttle::{Plain, PlannedCharge, PlannedCharges, Throttle};
use crate::client::{ClientIp, Networks, Peer, inner, say_what_is_missing};
use crate::decision::Decision;
use crate::guard::bans::BanList;
use crate::key;
use crate::limiter::Limiter;
use crate::policy::Policy;
use crate::request_head::RequestHead;
use crate::store::Charge;

type Respond = dyn Fn(&Refusal<'_>, &RequestHead<'_>) -> Response<Bytes> + Send + Sync;

/// All that decides on a request.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) limiter: Limiter,
    pub(super) throttles: Vec<Throttle>,
    pub(super) lists: AccessLists,
    pub(super) jitter: f64,
    pub(super) header_options: HeaderOptions,
    /// `true` if requests get their [`Limits`] as an extension.
    pub(super) extension: bool,
    pub(super) respond: Option<Arc<Respond>>,
}

/// Lists that take precedence over the policies, each with how its clients are found.
#[derive(Clone, Default)]
pub(super) struct AccessLists {
    pub(super) allowed: Vec<(ClientIp, Networks)>,
    pub(super) denied: Vec<(ClientIp, Networks)>,
    pub(super) bans: Vec<(ClientIp, BanList)>,
}

impl AccessLists {
    fn clients(&self) -> impl Iterator<Item = &ClientIp> {
        let networks = self.allowed.iter().chain(&self.denied).map(|(clients, _)| clients);
        networks.chain(self.bans.iter().map(|(clients, _)| clients))
    }
}

/// Outcome for a request.
pub(super) enum Verdict {
    /// The request passes; its response gets these actions.
    Pass(ResponseActions),
    Refuse(Box<Response<Bytes>>),
    /// The store must be asked.
    Ask(PlannedCharges),
}

impl Gate {
    pub(super) fn judge(self: &Arc<Self>, head: &RequestHead<'_>) -> Verdict {
        if let Some(verdict) = self.access(head) {
            return verdict;
        }
        match &self.throttles[..] {
            [throttle] => match throttle.plain() {
                Some(plain)
                    if !self.extension
                        && !self.header_options.old
                        && !self.header_options.partition_keys =>
                {
                    self.judge_one(throttle, plain, head)
                }
                _ => self.judge_all(throttle.ask(0, head).into_iter().collect(), head),
            },
            all => self.judge_all(
                all.iter().enumerate().filter_map(|(n, throttle)| throttle.ask(n, head)).collect(),
                head,
            ),
        }
    }

    /// The fast path: most layers have one policy, and most requests need no decision beyond the
    /// two headers.
    fn judge_one(
        self: &Arc<Self>,
        throttle: &Throttle,
        plain: Plain<'_>,
        head: &RequestHead<'_>,
    ) -> Verdict {
        let Plain { policy, words, key } = plain;
        // The key is not moved out of its place, because that copy would stall the processor.
        let mut found = if throttle.applies(head) { key(head) } else { None };
        let Some(key) = &found else { return Verdict::Pass(ResponseActions::default()) };
        if key.is_unknown() {
            return self.unknown(head);
        }
        let hashed;
        let name = if key::is_kept(key) {
            key
        } else {
            hashed = self.limiter.name(key);
            &*hashed
        };
        let charge = Charge::stored(policy, key, name, throttle.cost_of(head));
        match self.limiter.rule_at_once(&charge) {
            Some((_, ruling)) if charge.admits(&ruling) => {
                let headers = if self.header_options.quiet {
                    Headers::None
                } else {
                    Headers::one(words, &charge, &ruling)
                };
                Verdict::Pass(ResponseActions::headers(headers))
            }
            Some((now, ruling)) => {
                self.too_many(&Decision::one(now, &charge, &ruling, None), &[], head)
            }
            None => {
                let (cost, takes_place) = (charge.cost, charge.takes_place());
                let planned = found
                    .take()
                    .map(|key| PlannedCharge::new(0, None, key, cost))
                    .into_iter()
                    .collect();
                if takes_place { self.judge_all(planned, head) } else { Verdict::Ask(planned) }
            }
        }
    }

    fn judge_all(self: &Arc<Self>, planned: PlannedCharges, head: &RequestHead<'_>) -> Verdict {
        if planned.is_empty() {
            return Verdict::Pass(ResponseActions::default());
        }
        if planned.iter().any(PlannedCharge::is_of_unknown) {
            return self.unknown(head);
        }
        let decision = self.limiter.check_now(&self.charges(&planned));
        match decision {
            Some(decision) if decision.admitted => {
                Verdict::Pass(ResponseActions::new(self, decision, &planned))
            }
            Some(decision) => self.too_many(&decision, &planned, head),
            None => Verdict::Ask(planned),
        }
    }

    fn too_many(
        &self,
        decision: &Decision,
        planned: &[PlannedCharge],
        head: &RequestHead<'_>,
    ) -> Verdict {
        Verdict::Refuse(Box::new(self.refuse(&Refusal::TooMany(decision), planned, head)))
    }

    /// Refuses a request whose client is unknown.
    #[cold]
    fn unknown(&self, head: &RequestHead<'_>) -> Verdict {
        Verdict::Refuse(Box::new(self.refuse(&Refusal::UnknownClient, &[], head)))
    }

    /// Returns the verdict of the checks that take precedence over the policies, if there is one.
    fn access(&self, head: &RequestHead<'_>) -> Option<Verdict> {
        let lists = &self.lists;
        lists.clients().next()?;
        let Some(peer) = Peer::of(head.extensions) else {
            if lists.clients().all(ClientIp::is_lenient) {
                return None;
            }
            say_what_is_missing();
            return Some(self.unknown(head));
        };
        let ip = |clients: &ClientIp| clients.find(peer, head.headers);
        let refuse = |refusal| Some(Verdict::Refuse(Box::new(self.refuse(&refusal, &[], head))));
        if lists.allowed.iter().any(|(clients, networks)| networks.contains(ip(clients))) {
            return Some(Verdict::Pass(ResponseActions::default()));
        }
        // A denied client is refused in every form of its address; an IPv6 address that claims to
        // embed an allowed IPv4 address is not admitted for that.
        let is_denied = |(clients, networks): &(ClientIp, Networks)| {
            let ip = ip(clients);
            let within = inner(ip);
            networks.contains(ip) || (within != ip && networks.contains(within))
        };
        if lists.denied.iter().any(is_denied) {
            return refuse(Refusal::Denied);
        }
        let ban = lists.bans.iter().find_map(|(clients, bans)| {
            let ip = ip(clients);
            let within = inner(ip);
            bans.find_address(ip).or_else(|| bans.find_address(within).filter(|_| within != ip))
        })?;
        refuse(Refusal::Banned(&ban))
    }

    pub(super) fn charges<'a>(
        &'a self,
        planned: &'a [PlannedCharge],
    ) -> SmallVec<[(&'a Policy, &'a str, u32); 2]> {
        planned.iter().map(|planned| planned.charge(&self.throttles)).collect()
    }

    /// Returns whether responses do not change the charges.
    pub(super) fn is_settled(&self) -> bool {
        self.throttles.iter().all(Throttle::is_settled)
    }

    /// Returns the key that a policy has counted, as reported to clients: eight bytes of a hash.
    /// `number`: the index of the outcome, and the number of outcomes. A remembered denial has only
    /// the outcomes of the policies that deny.
    pub(super) fn partition_key(
        &self,
        planned: &[PlannedCharge],
        number: (usize, usize),
        policy: &str,
    ) -> Option<String> {
        let mut charges = planned.iter().map(|planned| planned.charge(&self.throttles));
        let charge = if planned.len() == number.1 {
            charges.nth(number.0)
        } else {
            charges.find(|(of, ..)| of.name() == policy)
        };
        charge.map(|(_, key, _)| self.limiter.tag(key))
    }

    pub(super) fn refuse(
        &self,
        refusal: &Refusal<'_>,
        planned: &[PlannedCharge],
        head: &RequestHead<'_>,
    ) -> Response<Bytes> {
        let own = self.respond.as_ref().map(|respond| respond(refusal, head));
        let key = |number, policy: &str| self.partition_key(planned, number, policy);
        headers::refusal(refusal, own, head, self.jitter, self.header_options, &key)
    }
}
