//! What happens to a world while it runs.

use ring::sim::Machine;
use shards::control::PartitionKey;
use source::{BatchAt, Fault, Target};

use crate::model::Flip;
use crate::plan::Trouble;
use crate::world::World;

impl World {
    /// One thing that happens, or none.
    pub fn happen(&mut self) {
        let trouble = self.plan.trouble;
        if trouble.verbs && self.lot.below(5) == 0 {
            self.order();
        }
        if (trouble.deceits || trouble.recreated) && self.guile.below(6) == 0 {
            self.mislead();
        }
        let key = self.any_key();
        match self.below(16) {
            _ if self.is_gone(&key.topic) => {}
            0..5 => self.grow(&key),
            5 if trouble.brokers => self.move_leader(&key),
            6 if trouble.brokers => self.toggle_broker(),
            7 if trouble.unclean && self.once_in(2) => self.lose_tail(&key),
            8 if trouble.trims => self.trim(&key),
            9 if trouble.watermarks => self.move_watermark(&key),
            10 if trouble.lies => self.lie(&key),
            11 if trouble.clock => {
                let by = self.below(7_200_000).cast_signed() - 3_600_000;
                self.sim.jump_wall_clock(by);
                self.tally.count("wall clock jumped");
            }
            12 if trouble.full_disk => self.toggle_space(),
            13 if trouble.brokers && self.once_in(3) => self.cut_network(),
            14 if trouble.bad_disk && self.once_in(4) => {
                self.sim.disk(Machine::FIRST, |disk| disk.fail_flushes(1));
                self.tally.count("flush failed by force");
            }
            15 if self.once_in(8) => {
                let broker = self.below(self.brokers.len() as u64) as usize;
                let _ = self.cluster.forget_sessions(broker);
                self.tally.count("sessions forgotten");
            }
            _ => {}
        }
    }

    /// A lie, or a topic that is created again, drawn by numbers of their own.
    fn mislead(&mut self) {
        let Trouble { deceits, recreated, .. } = self.plan.trouble;
        if recreated && (!deceits || self.guile.coin()) {
            return self.recreate();
        }
        let key = self.models.keys().nth(self.guile.index(self.models.len()));
        let key = key.expect("there are partitions").clone();
        if !self.is_gone(&key.topic) {
            self.deceive(&key);
        }
    }

    fn move_leader(&mut self, key: &PartitionKey) {
        let broker = self.below(self.brokers.len() as u64) as usize;
        let _ = self.cluster.move_leader(&key.topic, key.partition, broker);
        self.leaders.insert(key.clone(), broker);
        self.tally.count("leader moved");
    }

    fn toggle_broker(&mut self) {
        let broker = self.below(self.brokers.len() as u64) as usize;
        if self.brokers[broker].1.is_none() {
            return self.start_broker(broker);
        }
        let power = self.once_in(2);
        self.stop_broker(broker, power);
        self.tally.count(if power { "broker without power" } else { "broker killed" });
        // Others take over what it led, some of it.
        for key in self.models.keys().cloned().collect::<Vec<_>>() {
            if self.leaders[&key] == broker && self.once_in(2) {
                self.move_leader(&key);
            }
        }
    }

    fn cut_network(&mut self) {
        let broker = self.below(self.brokers.len() as u64) as usize;
        let machine = self.brokers[broker].0;
        match self.once_in(2) {
            true => {
                self.sim.cut(Machine::FIRST, machine);
                self.tally.count("network cut");
            }
            false => self.sim.mend(Machine::FIRST, machine),
        }
    }

    fn lose_tail(&mut self, key: &PartitionKey) {
        let before = self.log(key);
        let records = (before.end_offset() - before.log_start()).unsigned_abs();
        if records == 0 {
            return;
        }
        let at = before.end_offset() - 1 - self.below(1 + self.below(records)).cast_signed();
        self.cluster.lose_tail(&key.topic, key.partition, at).expect("it is lost");
        let cut = self.log(key).end_offset();
        let allowed = self.settings.allow_truncation;
        let model = self.models.get_mut(key).expect("it is known");
        model.lost(before, cut);
        if allowed && model.sealed.is_none() {
            model.allow_cuts();
        }
        self.trace(|| format!("{key} lost {cut}.. "));
        self.tally.count("unclean election");
    }

    fn trim(&mut self, key: &PartitionKey) {
        let log = self.log(key);
        if self.plan.old_source && self.models[key].recreated {
            // Of another log that has lost what the copy could be compared with nothing tells.
            return;
        }
        let records = (log.high_watermark() - log.log_start()).max(0).unsigned_abs();
        let to = log.log_start() + self.below(records + 1).cast_signed();
        if self.cluster.delete_records(&key.topic, key.partition, to).is_ok() {
            self.trace(|| format!("{key} deleted ..{to}"));
            self.models.get_mut(key).expect("it is known").trimmed = true;
            self.tally.count("records deleted");
        }
    }

    fn move_watermark(&mut self, key: &PartitionKey) {
        let log = self.log(key);
        let records = (log.end_offset() - log.log_start()).max(0).unsigned_abs();
        let at = log.log_start() + self.below(records + 1).cast_signed();
        let at = (!self.once_in(3)).then_some(at);
        let _ = self.cluster.hold_high_watermark(&key.topic, key.partition, at);
        self.tally.count("high watermark moved");
    }

    fn lie(&mut self, key: &PartitionKey) {
        let byte = self.below(400) as usize;
        let (fault, kind) = match self.below(9) {
            // Base offset and epoch are not covered by the checksum: those lies may be believed.
            0 => (Fault::FlipBit { byte: 16 + byte, bit: byte as u8 % 8 }, "lie: bit turned"),
            1 => (Fault::BatchLength(-1), "lie: negative batch length"),
            2 => (Fault::BatchLength(i32::MAX), "lie: overlong batch"),
            3 => (Fault::CutRecords(byte), "lie: part of a batch"),
            4 => (Fault::Empty, "lie: empty answers"),
            5 => (Fault::ErrorCode([3, 6, 9, 29, 56, 74, 75, -1, 999][byte % 9]), "lie: an error"),
            6 => (Fault::RecordsLength(-7), "lie: negative records length"),
            7 => (Fault::WrongPartition(77), "lie: another partition's number"),
            _ => (Fault::RepeatBatch, "lie: batch repeated"),
        };
        if fault == Fault::RepeatBatch && self.models[key].sealed.is_none() {
            // What came with a contradiction is taken back, flushed or not.
            let model = self.models.get_mut(key).expect("it is known");
            model.open_cuts.push(model.floor);
        }
        let times = 1 + self.below(8);
        let target = Target::partition(key.topic.to_string(), key.partition);
        self.cluster.inject(target, fault, Some(times));
        self.tally.count(kind);
    }

    fn toggle_space(&mut self) {
        let (free, used) = self.sim.disk(Machine::FIRST, |disk| {
            disk.set_capacity(1 << 40);
            (disk.free_bytes(), (1u64 << 40) - disk.free_bytes())
        });
        let _ = free;
        if self.once_in(2) {
            let more = self.below(200_000);
            self.sim.disk(Machine::FIRST, |disk| disk.set_capacity(used + more));
            self.tally.count("disk filled");
        }
    }

    /// Turns a bit of something that was reported flushed.
    pub fn flip_bit(&mut self) {
        let key = self.any_key();
        let log = self.log(&key);
        let model = &self.models[&key];
        let sure = self.sim.disk(Machine::FIRST, |disk| model.checkpointed(disk));
        if !model.before.is_empty() || !model.gaps.is_empty() {
            return; // where a batch lies is not known then
        }
        let mut found = None;
        let segments = self.sim.disk(Machine::FIRST, |disk| model.segments(disk));
        let mut batches = Vec::new();
        for (base, path, _) in &segments {
            let mut at = 0;
            for batch in log.batches_from(*base) {
                let next = segments.iter().find(|(other, ..)| other > base);
                if batch.next_offset > sure.min(model.floor)
                    || next.is_some_and(|n| batch.base_offset >= n.0)
                {
                    break;
                }
                batches.push((path.clone(), at, batch));
                at += batch.bytes;
            }
        }
        if !batches.is_empty() {
            let index = self.below(batches.len() as u64) as usize;
            let (path, at, batch) = batches[index].clone();
            found = Some((path, at, batch, self.below(batch.bytes as u64) as usize));
        }
        let Some((path, start, batch, byte)) = found else { return };
        let at = start + byte;
        let Some((base, _, bytes)) = segments.iter().find(|(_, p, _)| *p == path) else { return };
        let Some(was) = bytes.get(at).copied() else { return };
        let bit = self.below(8) as u8;
        let sealed = self.sim.disk(Machine::FIRST, |disk| {
            disk.flip_bit(&path, at as u64, bit);
            model.is_sealed(disk, *base)
        });
        self.trace(|| format!("bit {bit} of byte {at} turned in {}", path.display()));
        let told = sealed || tells(byte, bit, &batch, log.batch_after(&batch));
        let is = was ^ 1 << bit;
        let model = self.models.get_mut(&key).expect("it is known");
        match model.flips.iter_mut().find(|flip| flip.path == path && flip.at == at) {
            // It had been mended, or two bits of it are turned now.
            Some(flip) => (flip.is, flip.told) = (is, flip.told || told),
            None => model.flips.push(Flip { path, at, was, is, told }),
        }
        self.tally.count("bit turned below the flushed end");
    }

    /// Everything that can be mended is.
    pub fn calm(&mut self) {
        self.cluster.clear_faults();
        self.false_view = None;
        self.create_gone();
        self.mischief.borrow_mut().frame_ppm = 0;
        self.sim.disk(Machine::FIRST, |disk| {
            disk.set_capacity(1 << 40);
            disk.fail_flushes(0);
        });
        for broker in 0..self.brokers.len() {
            self.sim.mend(Machine::FIRST, self.brokers[broker].0);
            if self.brokers[broker].1.is_none() {
                self.start_broker(broker);
            }
        }
        for key in self.models.keys().cloned().collect::<Vec<_>>() {
            let _ = self.cluster.hold_high_watermark(&key.topic, key.partition, None);
        }
        self.sim.set_faults(crate::world::quiet());
    }
}

/// Whether a bit turned in this byte of a batch that no seal covers shows. No checksum covers the
/// base offset and the leader epoch: where a gap follows that is large enough, the one turned
/// upwards passes for a gap before the batch, and the other for another leader's.
fn tells(byte: usize, bit: u8, batch: &BatchAt, next: Option<BatchAt>) -> bool {
    match byte {
        0..8 => {
            let by = 1i64 << (8 * (7 - byte) as u32 + u32::from(bit)).min(62);
            let upwards = batch.base_offset & by == 0;
            let room = next.map_or(0, |next| next.base_offset - batch.next_offset);
            !upwards || by > room
        }
        12..16 => false,
        _ => true,
    }
}
