//! The API server's protocol, request by request: representations, pages, dry runs, the audit log; and bad input.

mod audit;
mod hostile;
mod lying_node;
mod protocol;
mod world;
