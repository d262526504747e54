//! Certificate requests (PKCS #10) as `certificates.k8s.io` has them, and certificates made from them. Pure.
//!
//! A certificate carries the request's subject, key and alternative names as they are, byte by byte, and nothing else of it:
//! usages and validity are the signer's decision.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rcgen::{KeyPair, SigningKey as _};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::FromDer;

/// `kubernetes.io/kube-apiserver-client`: certificates of users.
pub const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// `kubernetes.io/kube-apiserver-client-kubelet`: certificates of nodes as users.
pub const KUBELET_CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// `kubernetes.io/kubelet-serving`: certificates of nodes as servers.
pub const KUBELET_SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";

const NODES_GROUP: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";

/// A request whose signature has been checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The subject's common name.
    pub common_name: String,
    /// The subject's organizations.
    pub organizations: Vec<String>,
    /// How many alternative names there are that are DNS names, addresses, mail addresses and URIs.
    pub names: Names,
    subject: Vec<u8>,
    key: Vec<u8>,
    alternative_names: Option<Vec<u8>>,
}

/// Numbers of alternative names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are what they are called")]
pub struct Names {
    pub dns: usize,
    pub ip: usize,
    pub email: usize,
    pub uri: usize,
}

impl Request {
    /// Reads a PEM document (`certificates.ParseCSR`) and checks that whoever made it has the key.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let block = x509_parser::pem::parse_x509_pem(pem).ok().map(|(_, block)| block);
        let block = block.filter(|block| block.label == "CERTIFICATE REQUEST");
        let block = block.ok_or("PEM block type must be CERTIFICATE REQUEST")?;
        let (rest, request) =
            X509CertificationRequest::from_der(&block.contents).map_err(|e| format!("asn1: structure error: {e}"))?;
        if !rest.is_empty() {
            return Err("asn1: syntax error: trailing data".to_owned());
        }
        request.verify_signature().map_err(|_| "x509: the signature of the request does not fit its key")?;
        let info = &request.certification_request_info;
        let texts = |list: Vec<&x509_parser::x509::AttributeTypeAndValue<'_>>| -> Vec<String> {
            list.into_iter().filter_map(|value| value.as_str().ok()).map(str::to_owned).collect()
        };
        let mut parsed = Self {
            // Of several the last counts, as in Go.
            common_name: texts(info.subject.iter_common_name().collect()).pop().unwrap_or_default(),
            organizations: texts(info.subject.iter_organization().collect()),
            subject: info.subject.as_raw().to_vec(),
            key: info.subject_pki.raw.to_vec(),
            ..Self::default()
        };
        for attribute in info.iter_attributes() {
            let ParsedCriAttribute::ExtensionRequest(wanted) = attribute.parsed_attribute() else { continue };
            for extension in wanted.extensions.iter().filter(|e| e.oid == OID_X509_EXT_SUBJECT_ALT_NAME) {
                let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
                    return Err("x509: invalid subject alternative names".to_owned());
                };
                for name in &names.general_names {
                    match name {
                        GeneralName::DNSName(_) => parsed.names.dns += 1,
                        GeneralName::IPAddress(_) => parsed.names.ip += 1,
                        GeneralName::RFC822Name(_) => parsed.names.email += 1,
                        GeneralName::URI(_) => parsed.names.uri += 1,
                        _ => return Err("x509: unsupported kind of subject alternative name".to_owned()),
                    }
                }
                parsed.alternative_names = Some(extension.value.to_vec());
            }
        }
        Ok(parsed)
    }

    /// Whether it is one that `kube-apiserver-client-kubelet` signs (`ValidateKubeletClientCSR`).
    ///
    /// # Errors
    /// Why not.
    pub fn check_kubelet_client(&self, usages: &[&str]) -> Result<(), String> {
        self.check_organization()?;
        let Names { dns, ip, email, uri } = self.names;
        for (count, what) in [(dns, "DNS"), (email, "Email"), (ip, "IP"), (uri, "URI")] {
            if count > 0 {
                return Err(format!("{what} subjectAltNames are not allowed"));
            }
        }
        self.check_common_name()?;
        check_usages(usages, "client auth")
    }

    /// Whether it is one that `kubelet-serving` signs (`ValidateKubeletServingCSR`).
    ///
    /// # Errors
    /// Why not.
    pub fn check_kubelet_serving(&self, usages: &[&str]) -> Result<(), String> {
        self.check_organization()?;
        let Names { dns, ip, email, uri } = self.names;
        if dns + ip == 0 {
            return Err("DNS or IP subjectAltName is required".to_owned());
        }
        for (count, what) in [(email, "Email"), (uri, "URI")] {
            if count > 0 {
                return Err(format!("{what} subjectAltNames are not allowed"));
            }
        }
        check_usages(usages, "server auth")?;
        self.check_common_name()
    }

    fn check_organization(&self) -> Result<(), String> {
        let fits = self.organizations.len() == 1 && self.organizations[0] == NODES_GROUP;
        if fits { Ok(()) } else { Err(format!("subject organization is not {NODES_GROUP}")) }
    }

    fn check_common_name(&self) -> Result<(), String> {
        let fits = self.common_name.starts_with(NODE_PREFIX);
        if fits { Ok(()) } else { Err(format!("subject common name does not begin with {NODE_PREFIX}")) }
    }
}

/// Whether it is one that `kube-apiserver-client` signs, as far as its usages tell.
///
/// # Errors
/// Why not.
pub fn check_client_usages(usages: &[&str]) -> Result<(), String> {
    let optional = ["digital signature", "key encipherment", "client auth"];
    if let Some(other) = usages.iter().find(|usage| !optional.contains(usage)) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    match usages.contains(&"client auth") {
        true => Ok(()),
        false => Err("missing required usage for client certificate: client auth".to_owned()),
    }
}

fn check_usages(usages: &[&str], purpose: &str) -> Result<(), String> {
    let required = ["digital signature", "key encipherment", purpose];
    let all_known = usages.iter().all(|usage| required.contains(usage));
    if all_known && usages.contains(&"digital signature") && usages.contains(&purpose) {
        return Ok(());
    }
    let mut listed = required;
    listed.sort_unstable();
    Err(format!("usages did not match [{}]", listed.join(" ")))
}

/// What a certificate says beside what was requested.
#[derive(Clone, Debug)]
pub struct Grant<'a> {
    /// Usages in Kubernetes' words (`client auth`).
    pub usages: &'a [&'a str],
    /// When it begins to hold.
    pub not_before: Timestamp,
    /// When it ceases to, unless its authority does before.
    pub not_after: Timestamp,
    /// Its serial number.
    pub serial: [u8; 16],
}

/// Makes a certificate, PEM, of a request.
///
/// # Errors
/// When the authority's certificate or key cannot be used.
pub fn issue(request: &Request, ca_cert_pem: &str, ca_key_pem: &str, grant: &Grant<'_>) -> Result<String, String> {
    let key = KeyPair::from_pem(ca_key_pem).map_err(|error| format!("the authority's key: {error}"))?;
    if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err("the authority's key is not of the kind that was made for it (ECDSA P-256)".to_owned());
    }
    let (_, block) = x509_parser::pem::parse_x509_pem(ca_cert_pem.as_bytes()).map_err(|e| e.to_string())?;
    let authority = block.parse_x509().map_err(|error| format!("the authority's certificate: {error}"))?;
    let end = grant
        .not_after
        .min(Timestamp::from_second(authority.validity().not_after.timestamp()).map_err(|error| error.to_string())?);
    let algorithm = sequence(&[&oid(&[1, 2, 840, 10045, 4, 3, 2])]);
    let mut serial = grant.serial.to_vec();
    // Positive and of full length.
    serial[0] = serial[0] & 0x7f | 0x40;
    let key_id = authority.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    let body = sequence(&[
        &tagged(0xa0, &tagged(0x02, &[2])),
        &tagged(0x02, &serial),
        &algorithm,
        authority.subject().as_raw(),
        &sequence(&[&time(grant.not_before), &time(end)]),
        &request.subject,
        &request.key,
        &tagged(0xa3, &extensions(request, grant.usages, key_id.as_deref())),
    ]);
    let signature = key.sign(&body).map_err(|error| error.to_string())?;
    let certificate = sequence(&[&body, &algorithm, &tagged(0x03, &[&[0], &signature[..]].concat())]);
    Ok(pem("CERTIFICATE", &certificate))
}

/// RFC 5280, section 4.2.
fn extensions(request: &Request, usages: &[&str], authority_key_id: Option<&[u8]>) -> Vec<u8> {
    let extension = |id: &[u64], critical: bool, value: &[u8]| {
        let flag: &[u8] = if critical { &[0x01, 0x01, 0xff] } else { &[] };
        sequence(&[&oid(id), flag, &tagged(0x04, value)])
    };
    let mut all = Vec::new();
    if let Some(bits) = key_usage(usages) {
        all.push(extension(&[2, 5, 29, 15], true, &bits));
    }
    let purposes: Vec<Vec<u8>> = usages.iter().filter_map(|usage| purpose(usage)).map(oid).collect();
    if !purposes.is_empty() {
        all.push(extension(&[2, 5, 29, 37], false, &tagged(0x30, &purposes.concat())));
    }
    // Not an authority.
    all.push(extension(&[2, 5, 29, 19], true, &sequence(&[])));
    if let Some(id) = authority_key_id {
        all.push(extension(&[2, 5, 29, 35], false, &sequence(&[&tagged(0x80, id)])));
    }
    if let Some(names) = &request.alternative_names {
        all.push(extension(&[2, 5, 29, 17], false, names));
    }
    tagged(0x30, &all.concat())
}

/// The bits of `keyUsage`, as a BIT STRING without trailing zeros.
fn key_usage(usages: &[&str]) -> Option<Vec<u8>> {
    const BITS: [&str; 9] = [
        "digital signature",
        "content commitment",
        "key encipherment",
        "data encipherment",
        "key agreement",
        "cert sign",
        "crl sign",
        "encipher only",
        "decipher only",
    ];
    let is_set = |bit: &usize| usages.contains(&BITS[*bit]) || *bit == 0 && usages.contains(&"signing");
    let set: Vec<usize> = (0..BITS.len()).filter(is_set).collect();
    let last = *set.last()?;
    let mut bytes = vec![0; last / 8 + 1];
    set.iter().for_each(|bit| bytes[bit / 8] |= 0x80 >> (bit % 8));
    bytes.insert(0, (7 - last % 8) as u8);
    Some(tagged(0x03, &bytes))
}

/// The object identifier of an extended key usage.
fn purpose(usage: &str) -> Option<&'static [u64]> {
    Some(match usage {
        "any" => &[2, 5, 29, 37, 0],
        "server auth" => &[1, 3, 6, 1, 5, 5, 7, 3, 1],
        "client auth" => &[1, 3, 6, 1, 5, 5, 7, 3, 2],
        "code signing" => &[1, 3, 6, 1, 5, 5, 7, 3, 3],
        "email protection" | "s/mime" => &[1, 3, 6, 1, 5, 5, 7, 3, 4],
        "ipsec end system" => &[1, 3, 6, 1, 5, 5, 7, 3, 5],
        "ipsec tunnel" => &[1, 3, 6, 1, 5, 5, 7, 3, 6],
        "ipsec user" => &[1, 3, 6, 1, 5, 5, 7, 3, 7],
        "timestamping" => &[1, 3, 6, 1, 5, 5, 7, 3, 8],
        "ocsp signing" => &[1, 3, 6, 1, 5, 5, 7, 3, 9],
        "microsoft sgc" => &[1, 3, 6, 1, 4, 1, 311, 10, 3, 3],
        "netscape sgc" => &[2, 16, 840, 1, 113_730, 4, 1],
        _ => return None,
    })
}

/// DER: a tag, the length, the contents.
fn tagged(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match contents.len() {
        short @ 0..128 => out.push(short as u8),
        long => {
            let bytes: Vec<u8> = long.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
            out.push(0x80 | bytes.len() as u8);
            out.extend(bytes);
        }
    }
    out.extend(contents);
    out
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tagged(0x30, &parts.concat())
}

fn oid(arcs: &[u64]) -> Vec<u8> {
    let mut contents = Vec::new();
    let first = arcs[0] * 40 + arcs[1];
    for arc in [&[first], &arcs[2..]].concat() {
        let mut digits = vec![(arc & 0x7f) as u8];
        let mut rest = arc >> 7;
        while rest > 0 {
            digits.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        contents.extend(digits.iter().rev());
    }
    tagged(0x06, &contents)
}

/// RFC 5280, section 4.1.2.5: UTCTime through 2049, then GeneralizedTime.
fn time(at: Timestamp) -> Vec<u8> {
    let at = at.to_zoned(jiff::tz::TimeZone::UTC);
    if at.year() < 2050 {
        tagged(0x17, at.strftime("%y%m%d%H%M%SZ").to_string().as_bytes())
    } else {
        tagged(0x18, at.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes())
    }
}

/// A PEM document.
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned());
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.collect::<Vec<_>>().join("\n"))
}

/// `sha256:` and the digits of the digest of a certificate's public key, as kubeadm pins authorities.
///
/// # Errors
/// When it is no certificate.
pub fn public_key_hash(cert_pem: &str) -> Result<String, String> {
    use sha2::Digest as _;
    let (_, block) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).map_err(|error| error.to_string())?;
    let certificate = block.parse_x509().map_err(|error| error.to_string())?;
    let digest = sha2::Sha256::digest(certificate.public_key().raw);
    Ok(format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

/// When the first certificate of a PEM document ceases to hold.
pub fn not_after(cert_pem: &[u8]) -> Option<Timestamp> {
    let (_, block) = x509_parser::pem::parse_x509_pem(cert_pem).ok()?;
    Timestamp::from_second(block.parse_x509().ok()?.validity().not_after.timestamp()).ok()
}

/// When the first certificate of a PEM document begins to hold.
pub fn not_before(cert_pem: &[u8]) -> Option<Timestamp> {
    let (_, block) = x509_parser::pem::parse_x509_pem(cert_pem).ok()?;
    Timestamp::from_second(block.parse_x509().ok()?.validity().not_before.timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, SanType};

    const CLIENT: [&str; 3] = ["digital signature", "key encipherment", "client auth"];
    const SERVER: [&str; 2] = ["digital signature", "server auth"];

    fn request(common_name: &str, organization: &str, names: &[SanType]) -> Request {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names = names.to_vec();
        let key = KeyPair::generate().expect("a key");
        let pem = params.serialize_request(&key).expect("a request").pem().expect("PEM");
        Request::parse(pem.as_bytes()).expect("it parses")
    }

    fn authority() -> (String, String) {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
    }

    #[test]
    fn nodes_ask_for_client_certificates_in_one_form_only() {
        let node = request("system:node:n", "system:nodes", &[]);
        assert_eq!(node.check_kubelet_client(&CLIENT), Ok(()));
        assert_eq!(node.check_kubelet_client(&["digital signature", "client auth"]), Ok(()));
        let words = "usages did not match [client auth digital signature key encipherment]";
        assert_eq!(node.check_kubelet_client(&SERVER), Err(words.to_owned()));
        let words = Err("subject organization is not system:nodes".to_owned());
        assert_eq!(request("system:node:n", "system:masters", &[]).check_kubelet_client(&CLIENT), words);
        let words = Err("subject common name does not begin with system:node:".to_owned());
        assert_eq!(request("admin", "system:nodes", &[]).check_kubelet_client(&CLIENT), words);
        let named = request("system:node:n", "system:nodes", &[SanType::DnsName("n".try_into().expect("a name"))]);
        let words = Err("DNS subjectAltNames are not allowed".to_owned());
        assert_eq!(named.check_kubelet_client(&CLIENT), words);
        assert_eq!(named.check_kubelet_serving(&SERVER), Ok(()));
        assert!(node.check_kubelet_serving(&SERVER).is_err());
        assert_eq!(check_client_usages(&["client auth"]), Ok(()));
        assert!(check_client_usages(&["server auth"]).is_err() && check_client_usages(&[]).is_err());
    }

    #[test]
    fn a_certificate_is_what_was_requested_and_granted() {
        let ip = SanType::IpAddress("192.0.2.7".parse().expect("an address"));
        let wanted = request("system:node:n", "system:nodes", &[ip]);
        let (ca, key) = authority();
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let (begin, end) = (at("2026-01-02T03:04:05Z"), at("2051-01-02T03:04:05Z"));
        let usages = [&CLIENT[..], &["decipher only", "netscape sgc"]].concat();
        let grant = Grant { usages: &usages, not_before: begin, not_after: end, serial: [0; 16] };
        let pem = issue(&wanted, &ca, &key, &grant).expect("issued");
        assert_eq!(not_after(pem.as_bytes()), Some(end));
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
        let made = block.parse_x509().expect("a certificate");
        let (_, ca_block) = x509_parser::pem::parse_x509_pem(ca.as_bytes()).expect("PEM");
        let ca = ca_block.parse_x509().expect("a certificate");
        made.verify_signature(Some(ca.public_key())).expect("signed by the authority");
        assert_eq!(made.subject().to_string(), "O=system:nodes, CN=system:node:n");
        assert_eq!(made.issuer(), ca.subject());
        assert_eq!(made.validity().not_before.timestamp(), begin.as_second());
        let key_usage = made.key_usage().expect("valid").expect("there").value;
        assert!(key_usage.digital_signature() && key_usage.key_encipherment() && key_usage.decipher_only());
        assert!(!key_usage.key_cert_sign() && !made.is_ca());
        let purposes = made.extended_key_usage().expect("valid").expect("there").value;
        assert!(purposes.client_auth && !purposes.server_auth && purposes.other.len() == 1);
        let names = made.subject_alternative_name().expect("valid").expect("there").value;
        assert_eq!(names.general_names, [GeneralName::IPAddress(&[192, 0, 2, 7])]);
    }

    #[test]
    fn what_is_no_request_says_why() {
        assert_eq!(Request::parse(b"notacsr"), Err("PEM block type must be CERTIFICATE REQUEST".to_owned()));
        let key = KeyPair::generate().expect("a key");
        let good = CertificateParams::default().serialize_request(&key).expect("a request");
        let mut der = good.der().to_vec();
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(Request::parse(pem("CERTIFICATE REQUEST", &der).as_bytes()).is_err(), "a signature that does not fit");
        der.truncate(40);
        assert!(Request::parse(pem("CERTIFICATE REQUEST", &der).as_bytes()).is_err());
    }
}
