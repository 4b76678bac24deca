//! Everything that is known before the guest is touched.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use libvirt::xml::DomainView;
use libvirt::{Connect, Domain, Kind, ShutOffReason, State, XmlFlags};
use relay::policy::{self, Vm};

use super::choose::{self, Chosen};
use super::image::{self, Image};
use super::{boot, metadata, scratch, socket};
use crate::manifest::{Boot, LeftOut};
use crate::paths::Places;
use crate::serve::Job;
use crate::session::Line;
use crate::{agent, repair};

/// What a backup is about.
pub(super) struct Ready<'a> {
    pub(super) vm: &'a str,
    pub(super) policy: &'a Vm,
    pub(super) job: &'a Job,
    pub(super) connect: Connect,
    pub(super) domain: Domain,
    pub(super) disks: Vec<Chosen>,
    pub(super) sizes: Vec<u64>,
    pub(super) left_out: Vec<LeftOut>,
    /// One for each disk.
    pub(super) images: Vec<Image>,
    pub(super) boot: Vec<Boot>,
    pub(super) not_in_backup: Vec<String>,
    /// Host name, and version of libvirt: asked before the guest waits for anything.
    pub(super) host: (String, String),
    /// Directory of the VM's block maps.
    pub(super) maps: PathBuf,
    pub(super) method: Method,
}

/// How the disks are read.
pub(super) enum Method {
    /// Through libvirt's backup job.
    Pull(Live),
    /// From the images, because the VM is off.
    Cold(ShutOffReason),
}

/// What the pull method makes on this host.
pub(super) struct Live {
    /// Are there images of guests where the scratch images will be?
    pub(super) beside_images: bool,
    pub(super) socket: PathBuf,
    /// One for each disk.
    pub(super) scratches: Vec<PathBuf>,
}

fn find(vm: &str, policy: &Vm) -> Result<(Connect, Domain)> {
    let connect = Connect::open(agent::URI)?;
    let found = match &policy.uuid {
        Some(uuid) => connect.by_uuid(uuid),
        None => connect.by_name(&policy.domain),
    };
    match found {
        Ok(domain) => Ok((connect, domain)),
        Err(e) if e.kind == Kind::NotFound => bail!(
            "VM {vm}: no domain {:?} on this hypervisor; correct vms.{vm} in lab.toml or retire it",
            policy.domain
        ),
        Err(e) => Err(e.into()),
    }
}

/// Looks at the VM. Nothing is changed.
pub(super) fn prepare<'a>(
    line: &Line,
    vm: &'a str,
    policy: &'a Vm,
    job: &'a Job,
) -> Result<Ready<'a>> {
    let (connect, domain) = find(vm, policy)?;
    let off = is_off(vm, policy, &domain)?;
    refuse_foreign_job(line, vm, &domain, &job.places)?;
    let view = DomainView::parse(&domain.xml(XmlFlags::default())?)?;
    let (disks, left_out) = choose::choose(vm, &view, &policy.exclude, &volume_path(&connect))?;
    let boot = boot::files(&view)?;
    let sizes = disks
        .iter()
        .map(|disk| Ok(domain.block_info(&disk.target)?.capacity_bytes))
        .collect::<Result<Vec<u64>>>()?;
    let images: Vec<Image> = disks.iter().map(image::look).collect();
    let method = match off {
        Some(reason) => Method::Cold(reason),
        None => Method::Pull(live(&connect, job, &disks, &images)?),
    };
    Ok(Ready {
        vm,
        policy,
        job,
        host: (connect.hostname()?, connect.lib_version()?.to_string()),
        connect,
        maps: job.places.maps(vm),
        method,
        images,
        not_in_backup: metadata::not_in_backup(&view, domain.uuid()),
        boot,
        domain,
        disks,
        sizes,
        left_out,
    })
}

/// Is the VM off, and why? None if it runs.
///
/// # Errors
/// It is in another state, or in another one than the policy's method needs.
fn is_off(vm: &str, policy: &Vm, domain: &Domain) -> Result<Option<ShutOffReason>> {
    let state = domain.state()?;
    match (state, policy.method) {
        (State::Running, policy::Method::Auto | policy::Method::Pull) => Ok(None),
        (State::ShutOff(reason), policy::Method::Auto | policy::Method::Cold) => Ok(Some(reason)),
        (State::Running, _) => bail!(
            "VM {vm} is running and vms.{vm}.method = \"cold\" needs it off; shut it down, or write \"auto\""
        ),
        (State::ShutOff(_), _) => bail!(
            "VM {vm} is {state} and vms.{vm}.method = \"pull\" needs it running; start it, or write \"auto\""
        ),
        _ => bail!(
            "VM {vm} is {state}; its backup needs it running or shut off: run it again when it is"
        ),
    }
}

/// Where the pull method works.
fn live(connect: &Connect, job: &Job, disks: &[Chosen], images: &[Image]) -> Result<Live> {
    let dir = &job.policy.scratch_dir;
    // Not to know counts as yes.
    let (mut grow, known) = images_of_all(connect).map_or((Vec::new(), false), |all| (all, true));
    grow.extend(images.iter().filter_map(|image| image.data_file.clone()));
    Ok(Live {
        beside_images: scratch::check(dir, &grow)? || !known,
        socket: socket::path(&job.places.nbd(), job.hello.job_id),
        scratches: disks
            .iter()
            .map(|disk| scratch::path(dir, &job.hello.job, disk))
            .collect(),
    })
}

/// The images of every domain of this host: where one of them is, room is not ours alone.
fn images_of_all(connect: &Connect) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for domain in connect.domains()? {
        let xml = match domain.xml(XmlFlags::default()) {
            Err(e) if e.kind == Kind::NotFound => continue,
            xml => xml?,
        };
        for disk in DomainView::parse(&xml)?.disks {
            let below = disk.backing.iter().map(|image| &image.source);
            let sources = [&disk.source].into_iter().chain(below);
            paths.extend(sources.filter_map(|source| source.path().map(PathBuf::from)));
        }
    }
    Ok(paths)
}

/// Asks libvirt where a volume is.
pub(super) fn volume_path(
    connect: &Connect,
) -> impl Fn(&str, &str) -> std::result::Result<String, String> {
    let connect = connect.clone();
    move |pool, volume| {
        let found = connect.volume_path(pool, volume);
        found.map_err(|e| e.message)
    }
}

/// Refuses a VM that has a backup job already, unless it is an orphan of ours.
fn refuse_foreign_job(line: &Line, vm: &str, domain: &Domain, places: &Places) -> Result<()> {
    if repair::end_orphan(domain, places)? {
        line.warn(format!(
            "{vm}: ended a backup job that began after its worker had died"
        ));
    }
    ensure!(
        domain.backup_xml()?.is_none(),
        "VM {vm} has a backup job of somebody else; wait for it, or end it with virsh domjobabort"
    );
    Ok(())
}
