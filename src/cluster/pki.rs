//! Certificates and keys of a cluster: one authority, the server, the administrator, and the key that signs ServiceAccount tokens.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::config::Config;
use crate::env::Env;

/// Days that a leaf certificate is valid, as kubeadm issues them.
const LEAF_DAYS: i64 = 365;
/// Days before its end in which a leaf is made anew.
const RENEWAL_DAYS: i64 = 30;
/// Days that the authority is valid.
const CA_DAYS: i64 = 3650;

/// Everything as PEM.
#[derive(Clone)]
pub struct Pki {
    /// The authority's certificate.
    pub ca: String,
    /// The authority's key (signs certificate requests).
    pub ca_key: String,
    /// The API server's certificate.
    pub server: String,
    /// The API server's key.
    pub server_key: String,
    /// The administrator's certificate (group `system:masters`).
    pub admin: String,
    /// The administrator's key.
    pub admin_key: String,
    /// The key that signs ServiceAccount tokens (ECDSA P-256).
    pub service_account_key: String,
    /// The authority that aggregated API servers trust with users' names.
    pub front_proxy_ca: String,
    /// Its client certificate, which the API server shows them.
    pub front_proxy: String,
    /// The key of that.
    pub front_proxy_key: String,
}

impl Pki {
    /// Reads what the directory has and makes what is missing; a server certificate that does not name an address of
    /// the configuration, or that expires within 30 days, is made anew, and so is an expiring administrator's.
    ///
    /// # Errors
    /// When a file cannot be read, parsed or written.
    pub fn ensure(dir: &Path, config: &Config, env: &Env) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let (ca, ca_key) = authority(dir, "ca", "miniCA", env)?;
        let issuer_key = KeyPair::from_pem(&ca_key).context("reading ca.key")?;
        let issuer = Issuer::from_ca_cert_pem(&ca, issuer_key).context("reading ca.crt")?;
        let addresses = server_addresses(config);
        let (server, server_key) = leaf(
            dir,
            "apiserver",
            env,
            |cert| names_all(cert, &addresses),
            || server_params(&addresses, config, env)?.self_key(&issuer),
        )?;
        let (admin, admin_key) = leaf(dir, "admin", env, |_| true, || admin_params(config, env)?.self_key(&issuer))?;
        let service_account_key = match read(dir, "sa.key")? {
            Some(key) => key,
            None => {
                let key = KeyPair::generate()?.serialize_pem();
                write(dir, "sa.key", &key)?;
                key
            }
        };
        let (front_proxy_ca, key) = authority(dir, "front-proxy-ca", "front-proxy-ca", env)?;
        let issuer = Issuer::from_ca_cert_pem(&front_proxy_ca, KeyPair::from_pem(&key)?)?;
        let make = || front_proxy_params(env)?.self_key(&issuer);
        let (front_proxy, front_proxy_key) = leaf(dir, "front-proxy-client", env, |_| true, make)?;
        Ok(Self {
            ca,
            ca_key,
            server,
            server_key,
            admin,
            admin_key,
            service_account_key,
            front_proxy_ca,
            front_proxy,
            front_proxy_key,
        })
    }

    /// When the first of the leaf certificates is due to be made anew.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn renewal(&self) -> Result<jiff::Timestamp> {
        let end = |pem: &str| -> Result<i64> {
            let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).context("reading a certificate")?;
            Ok(pem.parse_x509().context("reading a certificate")?.validity().not_after.timestamp())
        };
        let first = end(&self.server)?.min(end(&self.admin)?);
        // A second more, so that it is due by every comparison.
        Ok(jiff::Timestamp::from_second(first - RENEWAL_DAYS * 86_400 + 1)?)
    }
}

trait SelfKey {
    fn self_key(self, issuer: &Issuer<'_, KeyPair>) -> Result<(String, String)>;
}

impl SelfKey for CertificateParams {
    fn self_key(self, issuer: &Issuer<'_, KeyPair>) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        Ok((self.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
    }
}

fn leaf(
    dir: &Path,
    name: &str,
    env: &Env,
    fits: impl Fn(&x509_parser::certificate::X509Certificate<'_>) -> bool,
    make: impl Fn() -> Result<(String, String)>,
) -> Result<(String, String)> {
    let (cert_file, key_file) = (format!("{name}.crt"), format!("{name}.key"));
    if let (Some(cert), Some(key)) = (read(dir, &cert_file)?, read(dir, &key_file)?) {
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(cert.as_bytes()).with_context(|| format!("reading {cert_file}"))?;
        let parsed = pem.parse_x509().with_context(|| format!("reading {cert_file}"))?;
        let soon = env.now().as_second() + RENEWAL_DAYS * 86_400;
        if parsed.validity().not_after.timestamp() > soon && fits(&parsed) {
            return Ok((cert, key));
        }
    }
    let (cert, key) = make()?;
    write(dir, &key_file, &key)?;
    write(dir, &cert_file, &cert)?;
    Ok((cert, key))
}

/// An authority's certificate and key, made when they are not there.
fn authority(dir: &Path, file: &str, name: &str, env: &Env) -> Result<(String, String)> {
    let (cert_file, key_file) = (format!("{file}.crt"), format!("{file}.key"));
    if let (Some(cert), Some(key)) = (read(dir, &cert_file)?, read(dir, &key_file)?) {
        return Ok((cert, key));
    }
    let (cert, key) = make_ca(name, env)?;
    write(dir, &key_file, &key)?;
    write(dir, &cert_file, &cert)?;
    Ok((cert, key))
}

fn make_ca(name: &str, env: &Env) -> Result<(String, String)> {
    let mut params = params(name.to_owned(), None, CA_DAYS, env)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn server_addresses(config: &Config) -> Vec<IpAddr> {
    let mut addresses = config.reachable_at();
    addresses.extend([
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        config.api_address.ip(),
        config.host_ip.into(),
        config.api_service_ip().into(),
        config.node_ip.into(),
    ]);
    addresses.sort();
    addresses.dedup();
    addresses
}

fn server_params(addresses: &[IpAddr], config: &Config, env: &Env) -> Result<CertificateParams> {
    let mut params = params("kube-apiserver".into(), None, LEAF_DAYS, env)?;
    let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned);
    let domain = format!("kubernetes.default.svc.{}", config.cluster_domain);
    for name in names.into_iter().chain([domain, config.profile.clone()]) {
        params.subject_alt_names.push(SanType::DnsName(name.try_into().context("a DNS name")?));
    }
    params.subject_alt_names.extend(addresses.iter().map(|ip| SanType::IpAddress(*ip)));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn admin_params(config: &Config, env: &Env) -> Result<CertificateParams> {
    let mut params = params(format!("{}-user", config.profile), Some("system:masters"), LEAF_DAYS, env)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn front_proxy_params(env: &Env) -> Result<CertificateParams> {
    let mut params = params("front-proxy-client".to_owned(), None, LEAF_DAYS, env)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn params(common_name: String, organization: Option<&str>, days: i64, env: &Env) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    // A day of slack for clocks that are behind; a day is also what an edge box without a battery may be off.
    let day = |offset: i64| -> Result<_> {
        let time = jiff::Timestamp::from_second(env.now().as_second() + offset * 86_400)?;
        let date = time.to_zoned(jiff::tz::TimeZone::UTC).date();
        Ok(rcgen::date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs()))
    };
    params.not_before = day(-1)?;
    params.not_after = day(days)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    Ok(params)
}

fn names_all(cert: &x509_parser::certificate::X509Certificate<'_>, addresses: &[IpAddr]) -> bool {
    let Ok(Some(names)) = cert.subject_alternative_name() else { return false };
    addresses.iter().all(|address| {
        let octets = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        names
            .value
            .general_names
            .iter()
            .any(|name| matches!(name, x509_parser::extensions::GeneralName::IPAddress(found) if *found == octets))
    })
}

/// A file of a directory of certificates; `None` when it is not there.
///
/// # Errors
/// When it cannot be read.
pub fn read(dir: &Path, name: &str) -> Result<Option<String>> {
    match fs::read_to_string(dir.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", dir.join(name).display())),
    }
}

/// Writes a file of mode 0600 whole or not at all.
///
/// # Errors
/// When the file system refuses.
pub fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    let (path, temporary) = (dir.join(name), dir.join(format!("{name}.new")));
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_made_anew_when_they_are_due_and_not_before() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let env = Env::simulated(1, "2026-01-01T00:00:00Z".parse().expect("a time"));
        let config = Config::new("mini");
        let first = Pki::ensure(dir.path(), &config, &env).expect("made");
        let due = first.renewal().expect("readable certificates");
        env.advance(due.duration_since(env.now()) - jiff::SignedDuration::from_secs(60));
        let same = Pki::ensure(dir.path(), &config, &env).expect("read");
        assert_eq!((&first.server, &first.admin), (&same.server, &same.admin));
        env.advance(jiff::SignedDuration::from_secs(60));
        let second = Pki::ensure(dir.path(), &config, &env).expect("renewed");
        assert_eq!(first.ca, second.ca);
        assert!(first.server != second.server && first.admin != second.admin);
        assert!(second.renewal().expect("readable certificates") > env.now());
    }

    #[test]
    fn what_is_there_is_kept_and_a_new_address_renews_only_the_server() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let env = Env::real();
        let mut config = Config::new("mini");
        let first = Pki::ensure(dir.path(), &config, &env).expect("made");
        let second = Pki::ensure(dir.path(), &config, &env).expect("read");
        assert_eq!((&first.ca, &first.server, &first.admin), (&second.ca, &second.server, &second.admin));
        config.host_ip = Ipv4Addr::new(127, 77, 0, 9);
        let third = Pki::ensure(dir.path(), &config, &env).expect("renewed");
        assert_eq!((&first.ca, &first.admin), (&third.ca, &third.admin));
        assert_ne!(first.server, third.server);
    }
}
