//! How many files the process may have open, connections among them.
//!
//! A store that cannot open its files takes no writes any more. So connections get what is left when everything else has
//! its share, and never all: where the system allows fewer than are configured, there are fewer.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::config::Config;

/// Raises the process' limit as far as the system lets it; gives how many files it may have open then.
pub(super) fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok()
    {
        return maximum.unwrap_or(u64::MAX);
    }
    // none means: as many as one likes
    current.unwrap_or(u64::MAX)
}

/// Connections that clients and other providers may have, of `files` in all: as configured, or in proportion to it as many
/// as there are files for.
pub(super) fn share(config: &mut Config, files: u64) {
    let files = usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(KEPT);
    let (clients, peers) = (config.limits.connections_max, config.federation.connections_max);
    let peers = if config.federation.listen.is_some() { peers } else { 0 };
    let wanted = clients + peers;
    if wanted > files {
        config.federation.connections_max = (files * peers / wanted).max(1);
        config.limits.connections_max = (files - files * peers / wanted).max(1);
        tracing::warn!(
            files = files + KEPT,
            limits.connections_max = clients,
            connections = config.limits.connections_max,
            "the system lets this process have fewer open files than connections are configured: raise `ulimit -n` \
             (LimitNOFILE of systemd)"
        );
    }
}

/// For the store, for connections to other providers and the operator's, and for a connection of each worker that is
/// taken before it is counted.
const KEPT: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_get_what_the_store_leaves_and_no_more_than_they_are_given() {
        let shared = |files, federates| {
            let mut config = Config::default();
            config.federation.listen = federates;
            share(&mut config, files);
            (config.limits.connections_max, config.federation.connections_max)
        };
        let listens = Some(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
        assert_eq!(shared(1 << 20, listens), (10_000, 1_000));
        assert_eq!(shared(u64::MAX, listens), (10_000, 1_000));
        let (clients, peers) = shared(1024, listens);
        assert_eq!((clients + peers, peers), (512, 46));
        assert_eq!(shared(1024, None).0, 512);
        assert_eq!(shared(100, listens), (1, 1), "it starts, and serves one after the other");
    }
}
