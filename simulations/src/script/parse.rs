//! The lines of a script.

use std::time::Duration;

/// A script that was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    /// How many nodes there are.
    pub nodes: u64,
    /// Decides everything that the script does not.
    pub seed: u64,
    /// The lines, with what is written in each.
    pub lines: Vec<(String, Line)>,
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// Waits for a leader.
    Elect,
    /// Cuts one node off.
    Isolate(Who),
    /// The nodes fall into two parts.
    Part(Vec<Who>, Vec<Who>),
    /// Nobody hears it.
    Mute(Who),
    /// It hears nobody.
    Deafen(Who),
    /// All links between nodes work again.
    Heal,
    /// Nothing comes to it and nothing leaves it.
    Pause(Who),
    /// The end of that.
    Resume(Who),
    /// Its process is killed.
    Kill(Who),
    /// Its power is cut.
    CutPower(Who),
    /// Its process is asked to stop.
    Stop(Who),
    /// Its process is started.
    Start(Who),
    /// Its disk takes nothing more.
    FillDisk(Who),
    /// The end of that.
    FreeDisk(Who),
    /// What a node has now is copied, and the copy has a name: its `disk`, its `log`, or the folder of
    /// a tenant.
    Copy(String, Who, String),
    /// The power of its node is cut, and the copy is put back.
    PutBack(String),
    /// Its power is cut, and the folder of a tenant is removed.
    Lose(String, Who),
    /// Its wall clock is off by so many seconds.
    Clock(Who, i64),
    /// Time passes.
    Wait(Duration),
    /// Somebody asks a node for something.
    Ask(Who, Request),
    /// The same, and its answer is waited for later.
    Meanwhile(Who, Request),
    /// Waits for all answers.
    Answers,
    /// Waits until all nodes run and agree.
    Settle,
}

/// A node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// By its place, from 0.
    Node(usize),
    /// The one that leads.
    Leader,
    /// The first that runs and does not lead.
    Follower,
}

/// What a node is asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// A lock: key, holder, for how long, how long it is waited for.
    Acquire(String, String, Duration, Duration),
    /// More time: key, holder, for how long.
    Renew(String, String, Duration),
    /// The end of it: key, holder.
    Release(String, String),
    /// A tenant by this name.
    Create(String),
    /// A new description: tenant, word.
    Describe(String, String),
    /// The tenant as it is.
    Look(String),
    /// A run of one step.
    Run(String),
    /// The runs of a tenant.
    Runs(String),
    /// Who leads.
    WhoLeads,
    /// Another leader.
    StepDown,
}

/// A line that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptError(pub String);

impl std::fmt::Display for ScriptError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ScriptError {}

/// How many nodes there are at most.
const NODES_MAX: u64 = 5;
/// How long a lock is asked for, unless the line says.
const TTL: Duration = Duration::from_secs(10);

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// The first line that is none, with its number.
    pub fn parse(text: &str) -> Result<Self, ScriptError> {
        let mut script = Self { nodes: 3, seed: 1, lines: Vec::new() };
        for (text, number) in text.lines().zip(1..) {
            let text = text.split('#').next().unwrap_or_default().trim();
            if !text.is_empty() {
                script.take(text).ok_or_else(|| ScriptError(format!("line {number}: {text:?}")))?;
            }
        }
        Ok(script)
    }

    fn take(&mut self, text: &str) -> Option<()> {
        let words: Vec<&str> = text.split_whitespace().collect();
        match (words.as_slice(), self.lines.is_empty()) {
            (["nodes", count], true) => {
                self.nodes = count.parse().ok().filter(|count| (1..=NODES_MAX).contains(count))?;
            }
            (["seed", seed], true) => self.seed = seed.parse().ok()?,
            (words, _) => self.lines.push((text.to_owned(), line(words, self.nodes)?)),
        }
        Some(())
    }
}

fn line(words: &[&str], nodes: u64) -> Option<Line> {
    let who = |word: &str| who(word, nodes);
    Some(match words {
        ["elect"] => Line::Elect,
        ["isolate", node] => Line::Isolate(who(node)?),
        ["part", parts @ ..] => {
            let mut parts = parts.split(|word| *word == "|");
            let (left, right) = (parts.next()?, parts.next()?);
            let all = |words: &[&str]| words.iter().map(|word| who(word)).collect::<Option<_>>();
            Line::Part(all(left)?, all(right)?)
        }
        ["mute", node] => Line::Mute(who(node)?),
        ["deafen", node] => Line::Deafen(who(node)?),
        ["heal"] => Line::Heal,
        ["pause", node] => Line::Pause(who(node)?),
        ["resume", node] => Line::Resume(who(node)?),
        ["kill", node] => Line::Kill(who(node)?),
        ["cut-power", node] => Line::CutPower(who(node)?),
        ["stop", node] => Line::Stop(who(node)?),
        ["start", node] => Line::Start(who(node)?),
        ["fill-disk", node] => Line::FillDisk(who(node)?),
        ["free-disk", node] => Line::FreeDisk(who(node)?),
        ["copy", what, "of", node, "as", name] => {
            Line::Copy((*what).to_owned(), who(node)?, (*name).to_owned())
        }
        ["put-back", name] => Line::PutBack((*name).to_owned()),
        ["lose", tenant, "of", node] => Line::Lose((*tenant).to_owned(), who(node)?),
        ["clock", node, secs] => Line::Clock(who(node)?, secs.parse().ok()?),
        ["wait", secs] => Line::Wait(seconds(secs)?),
        ["answers"] => Line::Answers,
        ["settle"] => Line::Settle,
        ["meanwhile", words @ ..] => {
            let (node, request) = request(words)?;
            Line::Meanwhile(who(node)?, request)
        }
        words => {
            let (node, request) = request(words)?;
            Line::Ask(who(node)?, request)
        }
    })
}

/// A request and the word for the node.
fn request<'a>(words: &[&'a str]) -> Option<(&'a str, Request)> {
    Some(match *words {
        ["acquire", key, "by", holder, "at", node, ref how @ ..] => {
            let (ttl, wait) = lasting(how)?;
            (node, Request::Acquire(key.into(), holder.into(), ttl, wait))
        }
        ["renew", key, "by", holder, "at", node, ref how @ ..] => {
            let (ttl, _) = lasting(how)?;
            (node, Request::Renew(key.into(), holder.into(), ttl))
        }
        ["release", key, "by", holder, "at", node] => {
            (node, Request::Release(key.into(), holder.into()))
        }
        ["create", tenant, "at", node] => (node, Request::Create(tenant.into())),
        ["describe", tenant, "as", word, "at", node] => {
            (node, Request::Describe(tenant.into(), word.into()))
        }
        ["look", tenant, "at", node] => (node, Request::Look(tenant.into())),
        ["run", tenant, "at", node] => (node, Request::Run(tenant.into())),
        ["runs", tenant, "at", node] => (node, Request::Runs(tenant.into())),
        ["ask", node] => (node, Request::WhoLeads),
        ["step-down", node] => (node, Request::StepDown),
        _ => return None,
    })
}

/// `for SECS` and `waiting SECS`, in this order, each if it is there.
fn lasting(words: &[&str]) -> Option<(Duration, Duration)> {
    match words {
        [] => Some((TTL, Duration::ZERO)),
        ["for", ttl] => Some((seconds(ttl)?, Duration::ZERO)),
        ["waiting", wait] => Some((TTL, seconds(wait)?)),
        ["for", ttl, "waiting", wait] => Some((seconds(ttl)?, seconds(wait)?)),
        _ => None,
    }
}

fn who(word: &str, nodes: u64) -> Option<Who> {
    match word {
        "leader" => Some(Who::Leader),
        "follower" => Some(Who::Follower),
        _ => {
            let number: u64 = word.strip_prefix('n')?.parse().ok()?;
            let at = usize::try_from(number.checked_sub(1)?).ok()?;
            (number <= nodes).then_some(Who::Node(at))
        }
    }
}

fn seconds(word: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(word.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read() {
        let text = "# A story.\nnodes 2\nelect\npart n1 | leader\nacquire k by ann at n2 for 0.5\n";
        let script = Script::parse(text).unwrap();
        let lines: Vec<Line> = script.lines.into_iter().map(|(_, line)| line).collect();
        let half = Duration::from_millis(500);
        let acquire = Request::Acquire("k".into(), "ann".into(), half, Duration::ZERO);
        let part = Line::Part(vec![Who::Node(0)], vec![Who::Leader]);
        assert_eq!(script.nodes, 2);
        assert_eq!(lines, [Line::Elect, part, Line::Ask(Who::Node(1), acquire)]);
    }

    #[test]
    fn what_is_no_line_is_named() {
        for bad in ["dance", "isolate n4", "isolate", "elect\nnodes 3", "nodes 9", "wait -1"] {
            assert!(Script::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Script::parse("elect\nfly"), Err(ScriptError("line 2: \"fly\"".into())));
    }
}
