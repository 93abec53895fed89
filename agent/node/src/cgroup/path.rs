//! What the path of a cgroup says. Pure.
//!
//! The kubelet puts a container below a pod below `kubepods`, by one of two drivers: cgroupfs makes plain
//! folders, `kubepods/burstable/pod<uid>/<id>`; systemd slices and scopes, each named after all above it,
//! `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope`.
//! What is below a container is the container's.

use std::borrow::Cow;

/// A container as the path of a cgroup names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPath<'a> {
    /// What is before the kubelet's part: empty on a usual host, `/kubelet` or the like where several nodes
    /// share a kernel.
    pub prefix: &'a str,
    /// The pod's uid as the API writes it; of a static pod, the hash of its manifest.
    pub pod_uid: Cow<'a, str>,
    /// The id of the container, or of the pod's sandbox.
    pub container_id: &'a str,
    /// The container's own cgroup: the path without what is below it.
    pub path: &'a str,
}

/// The container that a cgroup belongs to. Of several that a path could name, one inside the other, the outermost.
pub fn parse(path: &str) -> Option<ContainerPath<'_>> {
    let mut pod: Option<(&str, Cow<'_, str>)> = None;
    let mut start = 0;

    for name in path.split('/') {
        let end = start + name.len();
        let before = &path[..start.saturating_sub(1)];
        if let Some((pod_uid, container_id)) = joined(name) {
            return Some(ContainerPath {
                prefix: before,
                pod_uid,
                container_id,
                path: &path[..end],
            });
        }
        // The container is right below its pod.
        if let Some((prefix, pod_uid)) = pod.take()
            && let Some(container_id) = container(name)
        {
            return Some(ContainerPath {
                prefix,
                pod_uid,
                container_id,
                path: &path[..end],
            });
        }
        pod = pod_uid(name).and_then(|uid| Some((kubelet_prefix(before)?, uid)));
        start = end + 1;
    }
    None
}

/// What is before the kubelet's part, given what is before the pod's.
fn kubelet_prefix(before: &str) -> Option<&str> {
    let (rest, last) = split_last(before);
    match last {
        "besteffort" | "burstable" => {
            let (rest, last) = split_last(rest);
            (last == "kubepods").then_some(rest)
        }
        "kubepods" => Some(rest),
        _ => {
            let slice = last.strip_suffix(".slice")?;
            match slice
                .strip_suffix("-besteffort")
                .or_else(|| slice.strip_suffix("-burstable"))
            {
                Some(_) => kubepods_slice(split_last(rest)),
                None => kubepods_slice((rest, last)),
            }
        }
    }
}

/// `kubepods.slice`, or `kubelet-kubepods.slice` below `kubelet.slice` and the like.
fn kubepods_slice<'a>((rest, name): (&'a str, &str)) -> Option<&'a str> {
    let slice = name.strip_suffix(".slice")?;
    (slice == "kubepods" || slice.ends_with("-kubepods")).then_some(rest)
}

fn split_last(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// The uid in the name of a pod's cgroup: `pod<uid>`, or `…-pod<uid with _ for ->.slice`.
fn pod_uid(name: &str) -> Option<Cow<'_, str>> {
    match name.strip_suffix(".slice") {
        Some(slice) => slice_uid(slice),
        None => name
            .strip_prefix("pod")
            .filter(|u| is_uid(u))
            .map(Into::into),
    }
}

/// In a slice a `-` stands for a `/`, so the kubelet writes `_` for those of the uid.
fn slice_uid(slice: &str) -> Option<Cow<'_, str>> {
    let (above, escaped) = slice.rsplit_once("-pod")?;
    let uid = match escaped.contains('_') {
        true => Cow::Owned(escaped.replace('_', "-")),
        false => Cow::Borrowed(escaped),
    };
    let above = above
        .strip_suffix("-besteffort")
        .or_else(|| above.strip_suffix("-burstable"))
        .unwrap_or(above);
    ((above == "kubepods" || above.ends_with("-kubepods")) && is_uid(&uid)).then_some(uid)
}

/// A UUID, or the hash of a static pod.
fn is_uid(text: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    match text.len() {
        32 => text.bytes().all(hex),
        36 => text.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => hex(b),
        }),
        _ => false,
    }
}

/// The id in the name of a container's cgroup: the name itself, or `<runtime>-<id>.scope`. What CRI-O runs
/// beside a container, `crio-conmon-<id>.scope`, is none.
pub(super) fn container(name: &str) -> Option<&str> {
    let id = match name.strip_suffix(".scope") {
        Some(scope) => {
            let (runtime, id) = scope.rsplit_once('-')?;
            (!runtime.ends_with("conmon")).then_some(id)?
        }
        None => name.strip_prefix("crio-").unwrap_or(name),
    };
    is_container_id(id).then_some(id)
}

fn is_container_id(id: &str) -> bool {
    id.len() == 64
        && id
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `<pod's slice>:<runtime>:<id>`: what a runtime makes of systemd's names if it was not told to use systemd.
fn joined(name: &str) -> Option<(Cow<'_, str>, &str)> {
    let (slice, rest) = name.split_once(".slice:")?;
    let (_, id) = rest.split_once(':')?;
    Some((slice_uid(slice)?, is_container_id(id).then_some(id)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "0b1c7d2e-58a4-4f0e-9d36-7a1f2c3b4d5e";
    const ESCAPED: &str = "0b1c7d2e_58a4_4f0e_9d36_7a1f2c3b4d5e";
    const HASH: &str = "5f2d9a1be0c34c7788f06a1d2b3c4d5e";
    const ID: &str = "9f0d6c2b1a3e4f5061728394a5b6c7d8e9f00112233445566778899aabbccdde";

    fn id() -> &'static str {
        &ID[..64]
    }

    fn fill(template: &str) -> String {
        template
            .replace("UID", UID)
            .replace("ESCAPED", ESCAPED)
            .replace("HASH", HASH)
            .replace("OUTER", &"ab".repeat(32))
            .replace("ID", id())
    }

    #[track_caller]
    fn found(template: &str, prefix: &str, uid: &str, below: &str) {
        let path = fill(template) + below;
        let expected = ContainerPath {
            prefix: &fill(prefix),
            pod_uid: uid.into(),
            container_id: id(),
            path: &fill(template),
        };
        assert_eq!(parse(&path), Some(expected), "{path}");
    }

    #[test]
    fn paths_as_kubelets_and_runtimes_make_them() {
        for (template, prefix, uid) in [
            // cgroupfs
            ("/kubepods/burstable/podUID/ID", "", UID),
            ("/kubepods/besteffort/podUID/ID", "", UID),
            ("/kubepods/podUID/ID", "", UID),
            ("/kubepods/burstable/podHASH/ID", "", HASH),
            ("/kubepods/burstable/podUID/crio-ID", "", UID),
            // systemd
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podESCAPED.slice/cri-containerd-ID.scope",
                "",
                UID,
            ),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podESCAPED.slice/crio-ID.scope",
                "",
                UID,
            ),
            (
                "/kubepods.slice/kubepods-podESCAPED.slice/docker-ID.scope",
                "",
                UID,
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podHASH.slice/cri-containerd-ID.scope",
                "",
                HASH,
            ),
            // kind
            (
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podESCAPED.slice/cri-containerd-ID.scope",
                "/kubelet.slice",
                UID,
            ),
            (
                "/docker/OUTER/kubelet/kubepods/burstable/podUID/ID",
                "/docker/OUTER/kubelet",
                UID,
            ),
            (
                "/system.slice/docker-OUTER.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podESCAPED.slice/cri-containerd-ID.scope",
                "/system.slice/docker-OUTER.scope/kubelet.slice",
                UID,
            ),
            // --cgroup-root
            ("/tbn2/kubepods/besteffort/podUID/ID", "/tbn2", UID),
            // A runtime on cgroupfs below a kubelet on systemd
            (
                "/system.slice/containerd.service/kubepods-burstable-podESCAPED.slice:cri-containerd:ID",
                "/system.slice/containerd.service",
                UID,
            ),
            (
                "/kubepods-besteffort-podESCAPED.slice:cri-containerd:ID",
                "",
                UID,
            ),
        ] {
            for below in [
                "",
                "/init.scope",
                "/a/b/c",
                "/container",
                "/kubepods/podUID",
            ] {
                found(template, prefix, uid, below);
            }
        }
    }

    #[test]
    fn the_outermost_of_nested_clusters_counts() {
        let inner = fill("/kubelet/kubepods/podHASH/OUTER");
        found("/kubepods/podUID/ID", "", UID, &inner);
    }

    #[test]
    fn other_paths_name_no_container() {
        for template in [
            "",
            "/",
            "/kubepods",
            "/kubepods/burstable",
            "/kubepods/burstable/podUID",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podESCAPED.slice",
            "/kubepods/burstable/podUID/not-an-id",
            "/kubepods/burstable/podUID/ab",
            "/kubepods/burstable/podnot-a-uid/ID",
            "/kubepods/burstable/other/ID",
            "/podUID/ID",
            "/other/podUID/ID",
            "/kubepods/burstable/podUID/between/ID",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podESCAPED.slice/crio-conmon-ID.scope",
            "/docker/ID",
            "/system.slice/docker-ID.scope",
            "/system.slice/sshd.service",
            "/user.slice/user-1000.slice/user@1000.service/app.slice",
            "/kubepods-burstable-podESCAPED.slice:cri-containerd:short",
            "/x-podESCAPED.slice:cri-containerd:ID",
        ] {
            assert_eq!(parse(&fill(template)), None, "{template}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_not(path in any::<String>()) {
            let _ = parse(&path);
        }

        #[test]
        fn any_path_of_likely_parts_is_parsed_or_not(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "kubepods", "burstable", "kubepods.slice", "kubepods-burstable.slice", "podUID",
                    "kubepods-burstable-podESCAPED.slice", "ID", "crio-ID.scope", "x", "", "é",
                    "kubepods-podESCAPED.slice:c:ID",
                ]),
                0..8,
            )
        ) {
            let path = fill(&format!("/{}", parts.join("/")));
            if let Some(found) = parse(&path) {
                prop_assert!(path.starts_with(found.path) && found.path.starts_with(found.prefix));
                prop_assert_eq!(found.container_id, id());
                // What is below a container is the container's.
                let below = format!("{}/below", found.path);
                prop_assert_eq!(parse(&below), Some(found));
            }
        }

        #[test]
        fn what_is_built_is_found_again(
            uid in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
            id in "[0-9a-f]{64}",
            prefix in "(/[a-z]{1,8}){0,2}",
            qos in prop::sample::select(vec!["", "burstable", "besteffort"]),
            runtime in prop::sample::select(vec!["cri-containerd", "crio", "docker"]),
            systemd in any::<bool>(),
            below in "(/[a-z.]{1,8}){0,3}",
        ) {
            let path = match (systemd, qos) {
                (false, "") => format!("{prefix}/kubepods/pod{uid}/{id}"),
                (false, qos) => format!("{prefix}/kubepods/{qos}/pod{uid}/{id}"),
                (true, "") => format!(
                    "{prefix}/kubepods.slice/kubepods-pod{}.slice/{runtime}-{id}.scope",
                    uid.replace('-', "_"),
                ),
                (true, qos) => format!(
                    "{prefix}/kubepods.slice/kubepods-{qos}.slice/kubepods-{qos}-pod{}.slice/{runtime}-{id}.scope",
                    uid.replace('-', "_"),
                ),
            };
            let expected = ContainerPath {
                prefix: &prefix,
                pod_uid: uid.as_str().into(),
                container_id: &id,
                path: &path,
            };
            let below = format!("{path}{below}");
            prop_assert_eq!(parse(&below), Some(expected));
        }
    }
}
