//! One run of the emulated machine.

use crate::{platform::Machine, process, process::Running, toolchain::version};
use anyhow::{Context as _, Result, bail};
use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::Duration,
};
use tempfile::TempDir;

/// A core executes one instruction a nanosecond of its own time, whatever the host does, and its counter counts nanoseconds,
/// which those of Armv8.0 cores do not do by themselves. One core only.
pub const COUNT_INSTRUCTIONS: [&str; 4] =
    ["-icount", "shift=0,sleep=off", "-global", "arm-cpu.cntfrq=1000000000"];

/// What the machine is made of, beside the platform's facts.
pub struct Setup<'a> {
    /// Flash image.
    pub flash: &'a Path,
    /// Cores.
    pub cores: u32,
    /// RAM, as QEMU's `-m` takes it.
    pub memory: &'a str,
    /// The job, as JSON. Without one the payload does what it does on a board, where nobody hands it a job.
    pub job: Option<&'a [u8]>,
    /// Disk with the model's container.
    pub model: Option<&'a Path>,
    /// More arguments.
    pub extra: &'a [&'a str],
}

/// Something that the machine did.
#[derive(Debug)]
pub enum Event {
    /// Bytes on the normal world's UART.
    Normal(Vec<u8>),
    /// Bytes on the secure UART.
    Secure(Vec<u8>),
}

/// A running machine; dropping it ends it and removes its files.
pub struct Qemu {
    running: Running,
    events: Receiver<Event>,
    folder: TempDir,
}

impl Qemu {
    /// Starts the machine.
    ///
    /// # Errors
    ///
    /// If QEMU is missing, too old, or does not start.
    pub fn start(machine: &Machine, setup: &Setup) -> Result<Self> {
        check_version(machine)?;
        let folder = tempfile::Builder::new().prefix("flexserve-").tempdir()?;

        // Not TCP: no port can be in use. Not standard output: it is for QEMU's own messages.
        let (sender, events) = mpsc::channel();
        let normal = listen(folder.path().join("normal"), sender.clone(), Event::Normal)?;
        let secure = listen(folder.path().join("secure"), sender, Event::Secure)?;

        let mut command = process::command(&machine.binary);
        command.args(&machine.args).args(setup.extra);
        command.args(["-m", setup.memory, "-smp", &setup.cores.to_string()]);
        command.arg("-bios").arg(setup.flash);
        for (name, path) in [("normal", &normal), ("secure", &secure)] {
            command.arg("-chardev").arg(format!("socket,id={name},path={}", escaped(path)));
            command.arg("-serial").arg(format!("chardev:{name}"));
        }
        if let Some(job) = setup.job {
            let file = folder.path().join("job.json");
            fs::write(&file, job)?;
            let name = flexserve_client::job::FW_CFG_NAME;
            command.arg("-fw_cfg").arg(format!("name={name},file={}", escaped(&file)));
        }
        if let Some(model) = setup.model {
            let drive = format!("if=none,id=model,format=raw,readonly=on,file={}", escaped(model));
            command.args(["-drive", &drive, "-device", "virtio-blk-device,drive=model"]);
        }
        let messages = File::create(folder.path().join("qemu.log"))?;
        command.stdout(messages.try_clone()?).stderr(messages);
        Ok(Self { running: Running::start(&mut command)?, events, folder })
    }

    /// Waits for the next event, at most `patience`. `None` if there was none.
    pub fn next(&self, patience: Duration) -> Option<Event> {
        match self.events.recv_timeout(patience) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                thread::sleep(patience);
                None
            }
        }
    }

    /// The exit status, if the machine has stopped.
    ///
    /// # Errors
    ///
    /// If the kernel does not tell.
    pub fn poll(&mut self) -> Result<Option<ExitStatus>> {
        self.running.poll()
    }

    /// QEMU's own messages so far.
    pub fn messages(&self) -> String {
        process::tail(&self.folder.path().join("qemu.log"))
    }
}

/// Waits, in a thread, for QEMU to connect to a socket and passes on what it says.
fn listen(path: PathBuf, sender: Sender<Event>, event: fn(Vec<u8>) -> Event) -> Result<PathBuf> {
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot make {}", path.display()))?;
    thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if sender.send(event(buffer[..count].to_vec())).is_err() {
                return;
            }
        }
    });
    Ok(path)
}

/// A path inside an option of QEMU's, where a comma separates.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Checks that QEMU is there and recent enough.
///
/// # Errors
///
/// Says which version is needed and where it comes from.
pub fn check_version(machine: &Machine) -> Result<()> {
    let Some(text) = process::output(&machine.binary, &["--version"]) else {
        bail!("{} is not installed; ./flexserve doctor says how to install it", machine.binary);
    };
    let found = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let found = found.unwrap_or("unknown");
    if version(found) < version(&machine.minimum_version) {
        bail!(
            "{} is version {found}, but {} is needed; on Debian 12: apt-get install -t bookworm-backports \
             qemu-system-arm",
            machine.binary,
            machine.minimum_version
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(binary: &str) -> Machine {
        Machine {
            binary: binary.to_owned(),
            minimum_version: "9.2".to_owned(),
            memory: String::new(),
            cores: 1,
            args: Vec::new(),
        }
    }

    #[test]
    fn an_old_or_missing_emulator_is_named_with_its_remedy() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let fake = folder.path().join("qemu");
        fs::write(&fake, "#!/bin/sh\necho QEMU emulator version 7.2.17 '(Debian 1:7.2)'\n").unwrap();
        fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
        let error = check_version(&machine(fake.to_str().unwrap())).unwrap_err().to_string();
        assert!(error.contains("7.2.17") && error.contains("bookworm-backports"), "{error}");
        let error = check_version(&machine("no-such-emulator")).unwrap_err().to_string();
        assert!(error.contains("doctor"), "{error}");
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(escaped(Path::new("/a,b")), "/a,,b");
    }
}
