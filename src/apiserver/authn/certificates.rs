//! The user of a client certificate: the common name is the name, the organisations are the groups.

use x509_parser::prelude::{FromDer, X509Certificate};

use super::{AUTHENTICATED, User};

/// The user of a certificate that TLS has verified against the client authority; `None` when it names nobody.
pub fn user(der: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    groups.push(AUTHENTICATED.to_owned());
    Some(User { name, groups, ..User::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_name_and_organisations() {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let user = user(certificate.der()).expect("a user");
        assert_eq!((user.name.as_str(), user.is_master(), user.is_in(AUTHENTICATED)), ("admin", true, true));
        assert_eq!(super::user(b"nonsense"), None);
    }
}
