//! The cluster's resolver: CoreDNS' behaviour for cluster names, everything else by the host's resolvers.
//!
//! [`answer`] is pure; [`server`] carries queries to it and back.

mod forward;
pub mod server;
pub mod zone;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

use self::zone::{Found, Meaning, Zone};
use super::service_table::ServiceTable;

/// The largest UDP answer, whatever the client offers: CoreDNS' `bufsize`, with room for what fits a pod's link.
const LARGEST_UDP: u16 = 4096;
/// The smallest that a client must take (RFC 1035).
const SMALLEST_UDP: u16 = 512;
/// How many CNAMEs are followed.
const LONGEST_CHAIN: usize = 8;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Answers have a limit.
    Udp,
    /// Answers may have 65535 bytes.
    Tcp,
}

/// What becomes of a query.
#[derive(Debug)]
pub enum Answer {
    /// These bytes.
    Now(Vec<u8>),
    /// Ask the host's resolvers the same.
    Forward,
    /// Ask the host's resolvers for another name, and put the chain that leads there in front.
    Chase(Box<Chase>),
    /// Nothing: it is not a query.
    Silence,
}

/// A chain of CNAMEs that leads out of the cluster.
#[derive(Debug)]
pub struct Chase {
    query: Message,
    transport: Transport,
    chain: Vec<Record>,
    /// Whom to ask for.
    pub target: Name,
    /// What to ask for.
    pub kind: RecordType,
}

/// Decides on a query. Never panics, whatever the bytes.
pub fn answer(bytes: &[u8], transport: Transport, zone: &Zone, table: &ServiceTable) -> Answer {
    let query = match Message::from_vec(bytes) {
        Ok(query) => query,
        Err(_) => return malformed(bytes),
    };
    if query.metadata.message_type != MessageType::Query {
        return Answer::Silence;
    }
    let refuse = |code| encode(&query, transport, code, Found::default(), None);
    if query.metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let [question] = &query.queries[..] else { return refuse(ResponseCode::FormErr) };
    if query.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
        return refuse(ResponseCode::BADVERS);
    }
    if question.query_class() != DNSClass::IN || matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR) {
        return refuse(ResponseCode::Refused);
    }
    let kind = question.query_type();
    let mut found = Found::default();
    let mut name = question.name().clone();
    for step in 0..LONGEST_CHAIN {
        match zone.lookup(&name, kind, table) {
            Meaning::Elsewhere if step == 0 => return Answer::Forward,
            Meaning::Elsewhere => {
                let chase = Chase { chain: found.answers, target: name, kind, transport, query };
                return Answer::Chase(Box::new(chase));
            }
            Meaning::NoSuchName => {
                return encode(&query, transport, ResponseCode::NXDomain, found, Some(zone));
            }
            Meaning::Found(next) => {
                found.answers.extend(next.answers);
                found.additionals.extend(next.additionals);
                match next.alias.filter(|_| kind != RecordType::CNAME) {
                    Some(target) => name = target,
                    None => return encode(&query, transport, ResponseCode::NoError, found, Some(zone)),
                }
            }
        }
    }
    refuse(ResponseCode::ServFail)
}

impl Chase {
    /// The question to the host's resolvers.
    pub fn upstream(&self) -> Option<Vec<u8>> {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(hickory_proto::op::Query::query(self.target.clone(), self.kind));
        message.to_vec().ok()
    }

    /// The whole answer, from theirs (`None`: they did not answer).
    pub fn complete(self, reply: Option<&[u8]>) -> Answer {
        let reply = reply.and_then(|bytes| Message::from_vec(bytes).ok());
        let code = reply.as_ref().map_or(ResponseCode::ServFail, |r| r.metadata.response_code);
        let mut found = Found { answers: self.chain, ..Found::default() };
        found.answers.extend(reply.into_iter().flat_map(|reply| reply.answers));
        encode(&self.query, self.transport, code, found, None)
    }
}

/// `SERVFAIL` for a query that nobody answered.
pub fn failure(bytes: &[u8], transport: Transport) -> Answer {
    match Message::from_vec(bytes) {
        Ok(query) => encode(&query, transport, ResponseCode::ServFail, Found::default(), None),
        Err(_) => Answer::Silence,
    }
}

/// A foreign answer, cut for a client that cannot take it whole.
pub fn fit(query: &[u8], reply: Vec<u8>, transport: Transport) -> Vec<u8> {
    let Ok(query) = Message::from_vec(query) else { return reply };
    if reply.len() <= limit(&query, transport) {
        return reply;
    }
    match Message::from_vec(&reply).map(|reply| reply.truncate().to_vec()) {
        Ok(Ok(cut)) => cut,
        _ => reply,
    }
}

fn limit(query: &Message, transport: Transport) -> usize {
    match (transport, &query.edns) {
        (Transport::Tcp, _) => usize::from(u16::MAX),
        (Transport::Udp, None) => usize::from(SMALLEST_UDP),
        (Transport::Udp, Some(edns)) => usize::from(edns.max_payload().clamp(SMALLEST_UDP, LARGEST_UDP)),
    }
}

/// The header alone can be answered, when it is one of a query.
fn malformed(bytes: &[u8]) -> Answer {
    let Some(&[a, b, flags, ..]) = bytes.first_chunk::<12>() else { return Answer::Silence };
    if flags & 0x80 != 0 {
        return Answer::Silence;
    }
    let message = Message::error_msg(u16::from_be_bytes([a, b]), OpCode::Query, ResponseCode::FormErr);
    message.to_vec().map_or(Answer::Silence, Answer::Now)
}

/// An authoritative answer when `zone` is given, with its SOA where the answer is negative.
fn encode(query: &Message, transport: Transport, code: ResponseCode, found: Found, zone: Option<&Zone>) -> Answer {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata = Metadata::response_from_request(&query.metadata);
    message.metadata.recursion_available = true;
    message.metadata.authoritative = zone.is_some();
    message.metadata.response_code = code;
    message.add_queries(query.queries.iter().take(1).cloned());
    if let Some(zone) = zone.filter(|_| found.answers.is_empty()) {
        message.add_authority(zone.soa());
    }
    // Clients take the first address: let them differ.
    let mut answers = found.answers;
    let addresses = answers.iter().all(|r| r.record_type() == RecordType::A);
    if addresses && !answers.is_empty() {
        let by = usize::from(query.metadata.id) % answers.len();
        answers.rotate_left(by);
    }
    message.add_answers(answers);
    message.add_additionals(found.additionals);
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(LARGEST_UDP);
        edns.set_rcode_high(code.high());
        message.set_edns(edns);
    }
    let bytes = match message.to_vec() {
        Ok(bytes) => bytes,
        Err(_) => return Answer::Silence,
    };
    if bytes.len() <= limit(query, transport) {
        return Answer::Now(bytes);
    }
    let mut cut = message.truncate();
    cut.metadata.truncation = true;
    cut.to_vec().map_or(Answer::Silence, Answer::Now)
}

#[cfg(test)]
mod tests;
