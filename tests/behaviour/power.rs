//! What a power cut leaves of a store: all that was answered. On two disks that lose everything which they have not been made to
//! keep, in the middle of writing:
//!
//! - ext4 on a loop device (EXT4_IOC_SHUTDOWN without a flush of its log). It takes root, loop devices, mkfs.ext4 and perl (for
//!   the one system call that no safe library of ours makes). Where they are not there it says so, and TEST_CUTS, which
//!   asks for more cuts than a few, makes that a failure.
//! - a layer between the process and its files that takes back what no sync has made last (`tests/support/unsynced.c`). It takes
//!   a C compiler.
//!
//! One seed, printed; TEST_SEED repeats it.

use std::{
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use mimid::{
    store::{
        self, Batch, Condition, Page, SharedStore, StoreConfig, Write,
        records::{FeedEntry, GroupHead, GroupStatus, LogRecord},
    },
    wire::ids::{Domain, Epoch, GroupId, RecipientId, Sequence, Timestamp},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{not_run::not_run, providers::PATIENCE, serve::Serve, unsynced::Unsynced};

/// Groups that are written to at the same time, so that they share flushes.
const WRITERS: u8 = 6;
/// Some writers' records: small ones, one that an engine splits, and one of the size of a commit that adds many.
const BYTES: [usize; 3] = [300, 5_000, 80_000];

#[test]
fn what_was_answered_survives_a_power_cut_on_sled() {
    cut_ext4("sled");
}

#[test]
fn what_was_answered_survives_a_power_cut_on_fjall() {
    cut_ext4("fjall");
}

#[test]
fn what_was_answered_survives_the_loss_of_what_is_not_synced_on_sled() {
    let at = tempfile::tempdir().unwrap();
    cuts("sled", &unsynced(at.path(), false)).unwrap();
}

#[test]
fn what_was_answered_survives_the_loss_of_what_is_not_synced_on_fjall() {
    let at = tempfile::tempdir().unwrap();
    cuts("fjall", &unsynced(at.path(), false)).unwrap();
}

#[test]
fn a_disk_that_only_says_that_it_syncs_is_found_out() {
    for engine in ["sled", "fjall"] {
        let at = tempfile::tempdir().unwrap();
        let lost = cuts(engine, &unsynced(at.path(), true)).unwrap_err();
        println!("{engine}: {lost}");
    }
}

fn unsynced(at: &Path, lies: bool) -> Unsynced {
    let under = at.join("disk");
    std::fs::create_dir(&under).unwrap();
    Unsynced::new(&under, &at.join("layer"), lies)
}

fn cut_ext4(engine: &str) {
    match LoopDisk::new() {
        Ok(disk) => cuts(engine, &disk).unwrap(),
        Err(why) => {
            assert!(asked().is_none(), "power cannot be cut here: {why}");
            not_run("power cuts on ext4", &why);
        }
    }
}

fn asked() -> Option<u64> {
    std::env::var("TEST_CUTS").ok().map(|cuts| cuts.parse().unwrap())
}

/// A disk whose power can be cut.
trait Disk: Sync {
    fn folder(&self) -> PathBuf;
    /// What the writing process needs of it.
    fn prepare(&self, writer: &mut Command);
    fn power_on(&self);
    /// In the middle of writing.
    fn cut(&self) -> Result<(), String>;
    /// Once nobody uses it.
    fn power_off(&self);
}

/// Cuts again and again what writes; what is missing behind one of them.
fn cuts(engine: &str, disk: &impl Disk) -> Result<(), String> {
    let seed =
        std::env::var("TEST_SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    println!("{engine}: TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut answered = [0; WRITERS as usize];
    let (cuts, mut all) = (asked().unwrap_or(4), 0);
    for cut in 1..=cuts {
        disk.power_on();
        let before = answered;
        let lasts = Duration::from_millis(random.random_range(10..400));
        write_until_cut(disk, engine, lasts, &mut answered);
        disk.power_on();
        check(&disk.folder(), engine, &answered)
            .map_err(|why| format!("{why}, cut {cut} of seed {seed}"))?;
        disk.power_off();
        all += answered.iter().zip(before).map(|(now, before)| now - before).sum::<u64>();
    }
    println!("{engine}: {cuts} cuts, {all} answered writes, 0 lost");
    assert!(all > 0, "nothing was written before any of the cuts");
    Ok(())
}

/// Writes in a process of its own until the power goes; `answered` learns how far each writer got.
fn write_until_cut(disk: &impl Disk, engine: &str, lasts: Duration, answered: &mut [u64]) {
    let mut writer = Command::new(std::env::current_exe().unwrap());
    writer
        .args(["--exact", "power::writes_until_the_power_goes", "--ignored", "--nocapture"])
        .env("TEST_POWER_FOLDER", disk.folder())
        .env("TEST_POWER_ENGINE", engine)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    disk.prepare(&mut writer);
    let mut writer = writer.spawn().unwrap();
    let told = BufReader::new(writer.stdout.take().unwrap());
    let (mut first, id) = (true, &writer.id().to_string());
    std::thread::scope(|scope| {
        for line in told.lines() {
            let line = line.unwrap();
            let Some(told) = line.strip_prefix("answered ") else { continue };
            let (writer, sequence) = told.split_once(' ').unwrap();
            answered[writer.parse::<usize>().unwrap()] = sequence.parse().unwrap();
            if std::mem::take(&mut first) {
                scope.spawn(move || {
                    std::thread::sleep(lasts);
                    let cut = disk.cut();
                    if cut.is_err() {
                        // else it would write for ever
                        run(Command::new("kill").args(["-9", id])).unwrap();
                    }
                    cut.unwrap();
                });
            }
        }
    });
    // its store failed with the disk, and it ended by itself
    let ended = writer.wait().unwrap();
    assert!(!ended.success(), "the writer ended before the power went");
    assert!(!first, "the writer wrote nothing");
    disk.power_off();
}

/// What a command has said is done is there when the power goes the moment it ends.
#[test]
fn what_a_command_says_is_done_is_there_without_power() {
    for (engine, other) in [("sled", "fjall"), ("fjall", "sled")] {
        let at = tempfile::tempdir().unwrap();
        let place = |name: &str| at.path().join(name);
        let mut serve = Serve::start_on(engine, at.path());
        let mimid = |args: &[&str]| {
            let mut mimid = Command::new(env!("CARGO_BIN_EXE_mimid"));
            mimid.args(args).env_remove("MIMID_CONFIG").env_remove("MIMID_DATA_DIR");
            mimid
        };
        // what it makes is under `under`, which is not there before
        let loses_power = |under: &Path, args: &[&str]| {
            let beside = under.with_extension("layer");
            let layer = Unsynced::new(under, &beside, false);
            let mut mimid = mimid(args);
            layer.load_until_the_end(&mut mimid);
            run(&mut mimid).unwrap();
        };
        let endpoints = serve.data_dir().join("endpoints.json");
        let [home, data] = [place("homes/alice"), serve.data_dir()];
        let [backup, restored, copied] =
            [place("saved/backup"), place("new/deeper/restored"), place("other/copied")];
        let [home, data, endpoints, backup, restored, copied] =
            [&home, &data, &endpoints, &backup, &restored, &copied].map(|it| it.to_str().unwrap());
        let register = ["client", "--home", home, "register", "alice", "--endpoints", endpoints];
        loses_power(&place("homes"), &register);
        run(&mut mimid(&["client", "--home", home, "create", "first"])).unwrap();
        // its last name is given by a call that the layer does not see: what is in it is what may be lost
        std::fs::create_dir(place("saved")).unwrap();
        loses_power(&place("saved"), &["backup", "--data-dir", data, backup]);
        serve.kill();
        loses_power(&place("new"), &["restore", "--engine", engine, backup, restored]);
        loses_power(&place("other"), &["store", "copy", data, copied, "--engine", other]);
        for made in [backup, restored, copied] {
            run(&mut mimid(&["verify", made])).unwrap();
        }
    }
}

/// sled notes such an error and wakes nobody who waits for that write: once it takes the store that long, somebody does.
#[test]
fn a_write_that_fails_while_a_flush_waits_for_it_ends_the_flush() {
    let folder = tempfile::tempdir().unwrap();
    let [library, plan] = ["faults.so", "plan"].map(|name| folder.path().join(name));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/faults.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source);
    run(compiler.args(["-ldl", "-lpthread"])).unwrap();
    // one in four of these is such a write
    for nth in 24..48 {
        let data = folder.path().join(nth.to_string());
        std::fs::create_dir(&data).unwrap();
        std::fs::write(&plan, format!("1 write {nth} 1 late 300\n")).unwrap();
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "power::writes_until_the_power_goes", "--ignored", "--nocapture"])
            .env("TEST_POWER_FOLDER", &data)
            .env("TEST_POWER_ENGINE", "sled")
            .env("LD_PRELOAD", &library)
            .env("FAULTS_UNDER", &data)
            .env("FAULTS_PLAN", &plan)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        let ended = loop {
            match writer.try_wait().unwrap() {
                Some(ended) => break ended,
                None if Instant::now() > deadline => {
                    writer.kill().unwrap();
                    writer.wait().unwrap();
                    panic!("behind a write that failed ({nth}) its store never said so");
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        assert!(!ended.success(), "the {nth}th write has failed");
    }
}

/// Not a test: the process that [`write_until_cut`] cuts off.
#[test]
#[ignore = "what a test of power cuts runs as a process of its own"]
fn writes_until_the_power_goes() {
    let folder = PathBuf::from(std::env::var("TEST_POWER_FOLDER").expect("set by the test"));
    let engine = std::env::var("TEST_POWER_ENGINE").expect("set by the test");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let store = store::open(&config(&folder, &engine)).unwrap();
        let writers = (0..WRITERS).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut head = match store.group_head(&group(writer)).await.unwrap() {
                    Some(head) => head,
                    None => create(&store, writer).await,
                };
                loop {
                    let sequence = append(&store, writer, &mut head).await;
                    writeln!(std::io::stdout(), "answered {writer} {}", sequence.0).unwrap();
                }
            })
        });
        let ended = futures_util::future::select_all(writers).await;
        panic!("a writer has ended: {:?}", ended.0);
    });
}

/// Everything that was answered is there as it was written, and what is behind it is whole.
fn check(folder: &Path, engine: &str, answered: &[u64]) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let config = config(folder, engine);
        let store =
            store::open(&config).map_err(|why| format!("the store does not open: {why}"))?;
        for (writer, answered) in (0..WRITERS).zip(answered) {
            let head = store.group_head(&group(writer)).await.map_err(|why| why.to_string())?;
            let last = head.map_or(0, |head| head.next_sequence.0 - 1);
            if last < *answered {
                return Err(format!("writer {writer} had {answered}, and {last} is left"));
            }
            let mut from = 1;
            while from <= last {
                let page = Page { items_max: 256, bytes_max: 8 << 20 };
                let found = store.log(&group(writer), Sequence(from), page).await;
                let found = found.map_err(|why| why.to_string())?;
                if found.is_empty() {
                    return Err(format!("writer {writer} lacks {from} of {last}"));
                }
                for record in found {
                    if record != record_of(writer, Sequence(from)) {
                        return Err(format!("writer {writer}, record {from} is another"));
                    }
                    from += 1;
                }
            }
            assert_eq!(from, last + 1, "records of writer {writer} behind its head");
        }
        store.close().await.map_err(|why| why.to_string())
    })
}

fn config(folder: &Path, engine: &str) -> StoreConfig {
    let (engine, folder) = (engine.to_owned(), folder.join("store"));
    StoreConfig { engine, folder, cache_bytes: 16 << 20 }
}

fn group(writer: u8) -> GroupId {
    GroupId::of(&Domain::new("a.example").unwrap(), [writer; 16])
}

fn record_of(writer: u8, sequence: Sequence) -> LogRecord {
    let bytes = BYTES[usize::from(writer) % BYTES.len()];
    let mut event = vec![0; bytes];
    StdRng::seed_from_u64(u64::from(writer) << 32 | sequence.0).fill(event.as_mut_slice());
    let feed = FeedEntry {
        sequence,
        accepted_at: Timestamp(0),
        except: Some(RecipientId(1)),
        origin: None,
        handshake: false,
        event,
    };
    LogRecord { feed, change: vec![writer; 60], follows: None }
}

async fn create(store: &SharedStore, writer: u8) -> GroupHead {
    let head = GroupHead {
        group: group(writer),
        status: GroupStatus::Active,
        next_sequence: Sequence(1),
        first_sequence: Sequence(1),
        epoch: Epoch(0),
        revision: 1,
        snapshot: Sequence(0),
        previous_snapshot: None,
        created_at: Timestamp(0),
        last_accepted_at: Timestamp(0),
        log_bytes: 0,
        joiner_infos: Vec::new(),
        wake_at: None,
        hub_key: None,
        last: None,
    };
    let unknown = Condition::GroupUnknown(group(writer));
    store.write(Batch::new().when(unknown).and(Write::GroupHead(head.clone()))).await.unwrap();
    head
}

async fn append(store: &SharedStore, writer: u8, head: &mut GroupHead) -> Sequence {
    let group = group(writer);
    let (next_sequence, revision) = (head.next_sequence, head.revision);
    let record = record_of(writer, next_sequence);
    head.next_sequence = next_sequence.next();
    head.revision += 1;
    let batch = Batch::new()
        .when(Condition::GroupAt { group: group.clone(), next_sequence, revision })
        .and(Write::Log { group, record })
        .and(Write::GroupHead(head.clone()));
    store.write(batch).await.unwrap();
    next_sequence
}

/// ext4 on a loop device.
struct LoopDisk {
    at: tempfile::TempDir,
}

impl LoopDisk {
    fn new() -> Result<Self, String> {
        let at = tempfile::tempdir().unwrap();
        let disk = Self { at };
        let image = std::fs::File::create(disk.image()).unwrap();
        image.set_len(4 << 30).unwrap();
        std::fs::create_dir(disk.folder()).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=1"]).arg(disk.image()))?;
        run(Command::new("perl").args(["-e", "1"]))?;
        disk.mount()?;
        disk.unmount()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.at.path().join("image")
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(self.folder()))
    }

    /// Whoever still has a file open lets go of it in a moment.
    fn unmount(&self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let done = run(Command::new("umount").arg(self.folder()));
            if done.is_ok() || Instant::now() >= deadline {
                return done;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Disk for LoopDisk {
    fn folder(&self) -> PathBuf {
        self.at.path().join("disk")
    }

    fn prepare(&self, _: &mut Command) {}

    fn power_on(&self) {
        self.mount().unwrap();
    }

    /// Nothing reaches the disk any more, its journal neither: EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH.
    fn cut(&self) -> Result<(), String> {
        const CALL: &str = r#"
            my $flags = pack("L", 2);
            open(my $disk, "<", $ARGV[0]) or die "$!";
            ioctl($disk, 0x8004587D, $flags) or die "$!";
        "#;
        run(Command::new("perl").args(["-e", CALL]).arg(self.folder()))
    }

    fn power_off(&self) {
        self.unmount().unwrap();
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // a test that failed has it mounted still; the folder cannot be removed then
        let _ = Command::new("umount").arg("-l").arg(self.folder()).stderr(Stdio::null()).status();
    }
}

impl Disk for Unsynced {
    fn folder(&self) -> PathBuf {
        self.under().to_owned()
    }

    fn prepare(&self, writer: &mut Command) {
        self.load_into(writer);
    }

    fn power_on(&self) {
        Unsynced::power_on(self);
    }

    fn cut(&self) -> Result<(), String> {
        Unsynced::cut(self).map_err(|error| error.to_string())
    }

    fn power_off(&self) {
        self.forget();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let said = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    if said.status.success() { Ok(()) } else { Err(format!("{command:?}: {text}")) }
}
