//! Where the etcd is, and how it is spoken to.

use std::path::PathBuf;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

use super::super::Error;
use super::failed;

/// What all keys begin with unless something else is asked for; a Kubernetes API server's is the same.
const PREFIX: &str = "/registry";

/// An etcd cluster as a store.
#[derive(Clone, Debug, Default)]
pub struct EtcdOptions {
    /// `http://` or `https://` addresses of its members.
    pub endpoints: Vec<String>,
    /// What all keys begin with; `/registry` when empty.
    pub prefix: String,
    /// The authority that signed the members' certificates, PEM; the machine's own authorities are not asked.
    pub ca_file: Option<PathBuf>,
    /// Our certificate for the members, PEM.
    pub cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    pub key_file: Option<PathBuf>,
}

impl EtcdOptions {
    /// What all keys begin with: no slash at the end, for keys begin with one.
    pub fn prefix(&self) -> String {
        let prefix = if self.prefix.is_empty() { PREFIX } else { &self.prefix };
        format!("/{}", prefix.trim_matches('/'))
    }

    /// Connects, and asks once: a wrong address is an error now and not later.
    pub(super) async fn connect(&self) -> Result<Client, Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(5))
            .with_timeout(Duration::from_secs(30))
            .with_tcp_keepalive(Duration::from_secs(30));
        if let Some(tls) = self.tls()? {
            options = options.with_tls(tls);
        }
        let client = Client::connect(&self.endpoints, Some(options)).await.map_err(failed)?;
        let unreachable = |error| Error::Backend(format!("no etcd answers at {}: {error}", self.endpoints.join(", ")));
        client.maintenance_client().status().await.map_err(unreachable)?;
        Ok(client)
    }

    fn tls(&self) -> Result<Option<TlsOptions>, Error> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| Error::Backend(format!("{}: {error}", path.display())))
        };
        if !self.endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
            return Ok(None);
        }
        let mut tls = TlsOptions::new();
        if let Some(ca) = &self.ca_file {
            tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
        }
        match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?)),
            (None, None) => {}
            _ => return Err(Error::Backend("a client certificate needs its key, and a key its certificate".into())),
        }
        Ok(Some(tls))
    }
}

#[cfg(test)]
mod tests {
    use super::EtcdOptions;

    #[test]
    fn a_prefix_has_a_slash_in_front_and_none_behind() {
        let prefix = |text: &str| EtcdOptions { prefix: text.into(), ..EtcdOptions::default() }.prefix();
        assert_eq!(prefix(""), "/registry");
        assert_eq!(prefix("mine/"), "/mine");
        assert_eq!(prefix("/a/b"), "/a/b");
    }
}
