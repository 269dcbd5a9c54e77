//! The faults by name.

use std::fmt;

/// What can happen. Counted when it has really happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Fault {
    /// Power goes between two operations of the disk.
    PowerCut,
    /// Power goes in the middle of one.
    PowerCutInOperation,
    /// Power goes on all nodes at once.
    Blackout,
    /// The process is killed.
    Kill,
    /// The process is killed in the middle of an operation of the disk.
    KillInOperation,
    /// The process is stopped cleanly.
    Restart,
    /// All nodes are restarted, one after the other; counted when the last one begins.
    RollingRestart,
    /// There is no room on the disk for a while; counted by refused writes.
    FullDisk,
    /// Syncs fail for a while; counted one by one.
    FailedSyncs,
    /// Writes fail for a while, always or now and then; counted one by one, as the next one.
    FailedWrites,
    /// Reads fail for a while.
    FailedReads,
    /// Everything with a sync in it takes long for a while.
    SlowDisk,
    /// A bit of what was durable is another; counted when the node notices, and goes on as another member
    /// where it is one of the log.
    BitRot,
    /// A node loses all that is on its disk, and joins anew; also after its disk rotted.
    LostDisk,
    /// A node loses its replicated log and keeps the rest; counted when it goes on as another member.
    LostLog,
    /// A node loses the file of its control plane; counted when it is rebuilt.
    LostSystem,
    /// A node's disk is put back as it was some seconds earlier; counted when the node ends because its
    /// leader remembers more.
    OlderCopy,
    /// The same of its log alone.
    OlderLog,
    /// The folder of a tenant is missing on its node; counted when it is rebuilt, or on a lone node when
    /// that has said so and served another tenant meanwhile.
    LostFolder,
    /// The folder of a tenant is an older copy; counted like the one before.
    OlderFolder,
    /// The same for good, where the log makes good what the copy lacks.
    ReplayedFolder,
    /// The folder of a tenant that was deleted is put back.
    ReturnedFolder,
    /// A bit of a tenant's events is another; counted when they are rebuilt.
    RottenFolder,
    /// A node leaves the cluster because a client asked, and joins anew; counted when it has ended.
    Leave,
    /// The node ended by itself, with a reason.
    NodeFailed,
    /// A client and a node cannot reach each other for a while.
    LostLink,
    /// Messages between a client and a node are held up for a while.
    HeldLink,
    /// The leader cannot reach any other node, nor they it.
    LeaderAlone,
    /// Some node cannot reach any other, nor they it.
    NodeAlone,
    /// The nodes fall into two parts.
    Halves,
    /// One node is heard by nobody, and hears all; or the other way round.
    OneWay,
    /// Two nodes cannot reach each other, and a third one reaches both.
    Bridge,
    /// Nothing comes to or from a node for a while, and then all at once.
    Pause,
    /// The way between two nodes is long for a while.
    SlowLink,
    /// A node sends little a second for a while; what is too much is lost.
    ThinLink,
    /// A packet between nodes is lost; counted one by one, as the next two.
    LostPacket,
    /// A packet comes twice.
    DoubledPacket,
    /// A packet is overtaken by others.
    LatePacket,
    /// A node's wall clock jumps.
    ClockJump,
    /// A node's wall clock is wrong by days for a while.
    ClockDays,
    /// A node's wall clock begins to run fast or slow.
    ClockDrift,
    /// The leader is asked to step down, and does.
    StepDown,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PowerCut => "power cuts between operations",
            Self::PowerCutInOperation => "power cuts in an operation",
            Self::Blackout => "power cuts of all nodes at once",
            Self::Kill => "kills",
            Self::KillInOperation => "kills in an operation",
            Self::Restart => "clean restarts",
            Self::RollingRestart => "rolling restarts of all nodes",
            Self::FullDisk => "writes that found no room",
            Self::FailedSyncs => "syncs that failed",
            Self::FailedWrites => "writes that failed",
            Self::FailedReads => "reads that failed",
            Self::SlowDisk => "slow disks",
            Self::BitRot => "rotten bits, noticed",
            Self::LostDisk => "disks lost, and joined anew",
            Self::LostLog => "logs lost, and joined anew",
            Self::LostSystem => "control planes' files lost, and whole again",
            Self::OlderCopy => "older copies of a disk, noticed",
            Self::OlderLog => "older copies of a log, noticed",
            Self::LostFolder => "tenants' folders lost, and whole again",
            Self::OlderFolder => "tenants' folders older, and whole again",
            Self::ReplayedFolder => "tenants' folders older, replayed",
            Self::ReturnedFolder => "deleted tenants' folders put back",
            Self::RottenFolder => "tenants' events rotten, and whole again",
            Self::Leave => "nodes that left, and joined anew",
            Self::NodeFailed => "failures of a node by itself",
            Self::LostLink => "lost links to a client",
            Self::HeldLink => "held links to a client",
            Self::LeaderAlone => "partitions: the leader alone",
            Self::NodeAlone => "partitions: some node alone",
            Self::Halves => "partitions: two parts",
            Self::OneWay => "partitions: one way",
            Self::Bridge => "partitions: two apart, others between",
            Self::Pause => "pauses of a node's traffic",
            Self::SlowLink => "slow links between nodes",
            Self::ThinLink => "thin links of a node",
            Self::LostPacket => "packets lost",
            Self::DoubledPacket => "packets twice",
            Self::LatePacket => "packets late",
            Self::ClockJump => "jumps of a wall clock",
            Self::ClockDays => "wall clocks wrong by days",
            Self::ClockDrift => "drifts of a wall clock",
            Self::StepDown => "steps down on request",
        })
    }
}
