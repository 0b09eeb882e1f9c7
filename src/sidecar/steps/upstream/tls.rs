//! Whom a provider's certificate must come from.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::{CertificateDer, pem::PemObject};

/// TLS settings, made when the first connection needs them.
#[derive(Debug)]
pub(super) struct Tls {
    pub(super) extra: Vec<CertificateDer<'static>>,
    pub(super) config: OnceLock<Arc<rustls::ClientConfig>>,
}

/// Where Linux distributions keep their bundle. Environment variables do not change it: what
/// a sidecar trusts is decided by its image and its configuration.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

impl Tls {
    pub(super) fn config(&self) -> Arc<rustls::ClientConfig> {
        self.config.get_or_init(|| Arc::new(self.build())).clone()
    }

    fn build(&self) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        for bundle in BUNDLES {
            if let Ok(certificates) = CertificateDer::pem_file_iter(bundle) {
                roots.add_parsable_certificates(certificates.filter_map(Result::ok));
                break;
            }
        }
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        roots.add_parsable_certificates(self.extra.iter().cloned());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = match rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
        {
            Ok(builder) => builder.with_root_certificates(roots).with_no_client_auth(),
            Err(_) => unreachable!("ring offers the default protocol versions"),
        };
        // HTTP/1.1 only: one connection for each request in flight. Streams of HTTP/2 share a
        // flow-control window, so one client that does not read would hold up all others.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    }
}

pub(super) fn extra_roots(file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, String> {
    let Some(file) = file else {
        return Ok(Vec::new());
    };
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!(
            "`tls.caFile`: `{}` holds no certificate",
            file.display()
        )),
        Err(e) => Err(format!("`tls.caFile`: `{}`: {e}", file.display())),
    }
}
