//! A registry, by the OCI distribution specification: oci-client with this program's rules about
//! TLS. Certificates must be good and HTTP is no way to talk, but for registries on the loopback
//! and with `--insecure`: then any certificate will do, and HTTP where there is no TLS.

use std::net::IpAddr;
use std::time::Duration;

use bulkhead_image::reference::Name;
use futures_util::StreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

/// The longest silence of a registry.
const PATIENCE: Duration = Duration::from_secs(60);
const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Pieces of a blob as they come.
pub type Pieces = futures_util::stream::BoxStream<'static, Result<Vec<u8>, std::io::Error>>;

/// A registry and who we are there.
pub struct Registry {
    clients: Vec<Client>,
    credentials: RegistryAuth,
    registry: String,
    repository: String,
}

impl Registry {
    /// The registry of `name`.
    pub fn new(name: &Name, credentials: RegistryAuth, insecure: bool) -> Self {
        let lenient = insecure || is_loopback(&name.registry);
        let client = |protocol| {
            Client::new(ClientConfig {
                protocol,
                accept_invalid_certificates: lenient,
                read_timeout: Some(PATIENCE),
                connect_timeout: Some(PATIENCE),
                platform_resolver: None,
                ..ClientConfig::default()
            })
        };
        let mut clients = vec![client(ClientProtocol::Https)];
        if lenient {
            clients.push(client(ClientProtocol::Http));
        }
        let (registry, repository) = (name.registry.clone(), name.repository.clone());
        Self { clients, credentials, registry, repository }
    }

    /// A manifest or an index, as it came.
    pub async fn manifest(
        &mut self,
        of: &str,
        by_digest: bool,
    ) -> Result<Vec<u8>, OciDistributionError> {
        let (registry, repository, of) =
            (self.registry.clone(), self.repository.clone(), of.to_owned());
        let reference = match by_digest {
            true => Reference::with_digest(registry, repository, of),
            false => Reference::with_tag(registry, repository, of),
        };
        loop {
            let client = &self.clients[0];
            match client.pull_manifest_raw(&reference, &self.credentials, &MANIFEST_TYPES).await {
                Ok((bytes, _)) => return Ok(bytes.to_vec()),
                // Nobody speaks TLS there.
                Err(OciDistributionError::RequestError(error))
                    if error.is_connect() && self.clients.len() > 1 =>
                {
                    self.clients.remove(0);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Begins to fetch a blob. After a manifest: that one found out how to talk.
    pub async fn blob(&self, digest: &str, size: u64) -> Result<Pieces, OciDistributionError> {
        let descriptor = OciDescriptor {
            digest: digest.to_owned(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            ..OciDescriptor::default()
        };
        let (registry, repository) = (self.registry.clone(), self.repository.clone());
        let reference = Reference::with_digest(registry, repository, digest.to_owned());
        let stream = self.clients[0].pull_blob_stream(&reference, &descriptor).await?;
        Ok(stream.stream.map(|piece| piece.map(|bytes| bytes.to_vec())).boxed())
    }
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_known_by_its_names() {
        for yes in
            ["localhost", "localhost:5000", "127.0.0.1", "127.1.2.3:80", "[::1]:5000", "[::1]"]
        {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in ["docker.io", "localhost.example", "10.0.0.1:5000", "128.0.0.1", "[::2]:1"] {
            assert!(!is_loopback(no), "{no}");
        }
    }
}
