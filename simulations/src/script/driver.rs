//! Plays a script in a world and writes down what came of each line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use outside::{Broken, ensure};
use shiioo_storage::disk::DiskCopy;

use super::asking::{Asked, Book, CLERK, Desk, serve};
use super::parse::{Line, Request, Script, Who};
use crate::checks::{Checked, Violation};
use crate::env::trace::Trace;
use crate::env::{det, trace};
use crate::plan::Plan;
use crate::world::{Fault, World};

/// What came of a script.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// The script's lines, each with what came of it.
    pub transcript: String,
    /// The promise that was broken, or the line that could not be carried out.
    pub violation: Option<String>,
    /// What happened.
    pub trace: Trace,
}

/// Plays a script on a thread of its own; keeps the story as lines where asked.
pub fn tell(script: &Script, keep_lines: bool) -> Told {
    Plan::warm();
    let plan = Plan { nodes: script.nodes, faults: false, ..Plan::new(script.seed) };
    let lines = script.lines.clone();
    let played = det::on_seeded_thread(script.seed, move || {
        trace::begin(keep_lines);
        trace::freeze(Some(Duration::ZERO));
        let mut driver = Driver::new(&plan);
        let played = driver.play(&lines);
        let transcript = driver.end();
        (transcript, played.err().map(|Violation(text)| text), trace::end())
    });
    match played {
        Ok((transcript, violation, trace)) => Told { transcript, violation, trace },
        Err(panic) => {
            let violation = Some(format!("the run did not come to its end: {panic}"));
            Told { transcript: String::new(), violation, trace: Trace::default() }
        }
    }
}

pub(super) struct Driver {
    pub(super) world: World,
    desk: Rc<Desk>,
    pub(super) nodes: usize,
    /// Ways between nodes that nothing passes.
    pub(super) blocked: BTreeSet<(usize, usize)>,
    /// Nodes that get and send nothing.
    pub(super) paused: BTreeSet<usize>,
    /// Nodes that can write nothing down, a vote neither.
    pub(super) full: BTreeSet<usize>,
    /// The copies by their names: of which node, and which fault it is to put them back, but for
    /// folders of tenants.
    copies: BTreeMap<String, (usize, DiskCopy, Option<Fault>)>,
    book: Book,
    /// Who led, and in which term, when that was last told.
    pub(super) last_leader: Option<(usize, u64)>,
    asked: usize,
    /// Requests whose answers are waited for later, with what the transcript calls them.
    open: Vec<(usize, String, Request)>,
    transcript: String,
}

impl Driver {
    fn new(plan: &Plan) -> Self {
        let desk = Rc::new(Desk::default());
        let mut world = World::new(plan, &[CLERK.to_owned()]);
        world.stay_down();
        let names = world.board().node_names();
        world.add_client(CLERK, serve(Rc::clone(&desk), names));
        world.lay_links();
        Self {
            world,
            desk,
            nodes: usize::try_from(plan.nodes).unwrap_or(1),
            blocked: BTreeSet::new(),
            paused: BTreeSet::new(),
            full: BTreeSet::new(),
            copies: BTreeMap::new(),
            book: Book::default(),
            last_leader: None,
            asked: 0,
            open: Vec::new(),
            transcript: String::new(),
        }
    }

    fn play(&mut self, lines: &[(String, Line)]) -> Checked {
        for (text, line) in lines {
            self.write(text);
            let came = self.carry_out(line);
            if let Err(Violation(text)) = &came {
                self.write(&format!("    BROKEN: {text}"));
            }
            came?;
        }
        ensure!(self.open.is_empty(), "{} answers were not waited for", self.open.len());
        self.put_right()?;
        self.world.stop_and_compare()
    }

    fn end(self) -> String {
        self.desk.is_closed.set(true);
        self.world.tear_down();
        self.transcript
    }

    pub(super) fn write(&mut self, line: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.transcript, "{line}");
    }

    fn carry_out(&mut self, line: &Line) -> Checked {
        match line {
            Line::Elect => self.elect()?,
            Line::Isolate(who) => {
                let one = self.find(*who)?;
                self.part(&[one], &self.all_but(&[one]));
            }
            Line::Part(left, right) => {
                let (left, right) = (self.find_all(left)?, self.find_all(right)?);
                self.part(&left, &right);
            }
            Line::Mute(who) => {
                let one = self.find(*who)?;
                self.all_but(&[one]).into_iter().for_each(|other| self.block(one, other));
            }
            Line::Deafen(who) => {
                let one = self.find(*who)?;
                self.all_but(&[one]).into_iter().for_each(|other| self.block(other, one));
            }
            Line::Heal => self.heal(),
            Line::Wait(time) => self.pass(*time)?,
            Line::Ask(who, request) => {
                let at = self.find(*who)?;
                let own = self.asked;
                self.ask(at, request)?;
                self.await_answers(|number| number == own)?;
            }
            Line::Meanwhile(who, request) => {
                let at = self.find(*who)?;
                self.ask(at, request)?;
            }
            Line::Answers => self.await_answers(|_| true)?,
            Line::Settle => self.settle()?,
            Line::Copy(..) | Line::PutBack(..) | Line::Lose(..) => self.touch_files(line)?,
            _ => self.touch_node(line)?,
        }
        Ok(())
    }

    fn touch_node(&mut self, line: &Line) -> Checked {
        let (Line::Pause(who)
        | Line::Resume(who)
        | Line::Kill(who)
        | Line::CutPower(who)
        | Line::Stop(who)
        | Line::Start(who)
        | Line::FillDisk(who)
        | Line::FreeDisk(who)
        | Line::Clock(who, _)) = *line
        else {
            return Ok(());
        };
        let at = self.find(who)?;
        match *line {
            Line::Pause(_) => {
                self.world.hold(at);
                self.paused.insert(at);
            }
            Line::Resume(_) => {
                self.world.let_go(at);
                self.paused.remove(&at);
            }
            Line::Kill(_) => {
                self.world.kill(at);
                self.until_down(at)?;
            }
            Line::CutPower(_) => self.world.cut_power(at),
            Line::Stop(_) => {
                self.world.restart(at);
                self.until_down(at)?;
            }
            Line::Start(_) => self.world.start(at),
            Line::FillDisk(_) => {
                self.world.fill_disk(at, true);
                self.full.insert(at);
            }
            Line::FreeDisk(_) => {
                self.world.fill_disk(at, false);
                self.full.remove(&at);
            }
            Line::Clock(_, secs) => {
                self.world.host(at).clock.set_offset_ms(secs.saturating_mul(1000));
            }
            _ => {}
        }
        Ok(())
    }

    fn touch_files(&mut self, line: &Line) -> Checked {
        match line {
            Line::Copy(what, who, name) => {
                let at = self.find(*who)?;
                let (path, of) = match what.as_str() {
                    "disk" => (String::new(), Some(Fault::OlderCopy)),
                    "log" => ("log".to_owned(), Some(Fault::OlderLog)),
                    tenant => (self.book.folder(tenant)?, None),
                };
                let copy = self.world.host(at).disk.copy(&path);
                self.copies.insert(name.clone(), (at, copy, of));
            }
            Line::PutBack(name) => {
                let copied = self.copies.get(name);
                let copied = copied.ok_or_else(|| Violation(format!("there is no copy {name}")))?;
                match copied {
                    (at, copy, Some(fault)) => self.world.put_back(*at, copy, *fault),
                    (at, copy, None) => self.world.replace(*at, copy),
                }
            }
            Line::Lose(tenant, who) => {
                let at = self.find(*who)?;
                let nothing = DiskCopy::nothing(&self.book.folder(tenant)?);
                self.world.replace(at, &nothing);
            }
            _ => {}
        }
        Ok(())
    }

    fn all_but(&self, places: &[usize]) -> Vec<usize> {
        (0..self.nodes).filter(|at| !places.contains(at)).collect()
    }

    fn part(&mut self, left: &[usize], right: &[usize]) {
        for &one in left {
            for &other in right {
                self.block(one, other);
                self.block(other, one);
            }
        }
    }

    fn block(&mut self, from: usize, to: usize) {
        if self.blocked.insert((from, to)) {
            self.world.block(from, to);
        }
    }

    fn heal(&mut self) {
        for (from, to) in std::mem::take(&mut self.blocked) {
            self.world.unblock(from, to);
        }
    }

    /// Whatever a script has left undone is put right: then the nodes can be compared.
    fn put_right(&mut self) -> Checked {
        self.heal();
        for at in 0..self.nodes {
            if self.paused.remove(&at) {
                self.world.let_go(at);
            }
            self.world.fill_disk(at, false);
            self.full.remove(&at);
            self.world.host(at).clock.set_offset_ms(0);
            self.world.start(at);
        }
        self.until_whole().map(drop)
    }

    fn find_all(&self, who: &[Who]) -> Checked<Vec<usize>> {
        who.iter().map(|who| self.find(*who)).collect()
    }

    fn find(&self, who: Who) -> Checked<usize> {
        let leader = || self.world.leader().map(|(at, _)| at);
        let found = match who {
            Who::Node(at) => Some(at),
            Who::Leader => leader(),
            Who::Follower => {
                let leader = leader();
                (0..self.nodes).find(|at| self.world.runs(*at) && Some(*at) != leader)
            }
        };
        found.ok_or_else(|| Violation(format!("there is no {who:?}")))
    }

    fn ask(&mut self, at: usize, request: &Request) -> Checked {
        let call = self.book.call(request)?;
        let number = self.asked;
        self.asked += 1;
        self.desk.asked.borrow_mut().push_back(Asked { number, at, call });
        let whom = match request {
            Request::Acquire(_, holder, ..)
            | Request::Renew(_, holder, _)
            | Request::Release(_, holder) => format!("to {holder}: "),
            _ => String::new(),
        };
        self.open.push((number, whom, request.clone()));
        Ok(())
    }

    /// Waits for the answers of the requests with these numbers, and writes them down.
    fn await_answers(&mut self, wanted: impl Fn(usize) -> bool) -> Checked {
        self.until("all requests are answered", |driver| {
            let answers = driver.desk.answers.borrow();
            let mut numbers = driver.open.iter().map(|(number, ..)| *number);
            Ok(numbers.all(|number| !wanted(number) || answers.contains_key(&number)))
        })?;
        let (told, open) =
            std::mem::take(&mut self.open).into_iter().partition(|(number, ..)| wanted(*number));
        self.open = open;
        for (number, whom, request) in told {
            let answer = self.desk.answers.borrow_mut().remove(&number);
            let came = match answer {
                Some(Ok(reply)) => self.book.take(&request, &reply, &self.world),
                Some(Err(Broken { .. })) | None => "no answer".to_owned(),
            };
            self.write(&format!("    {whom}{came}"));
        }
        Ok(())
    }
}
