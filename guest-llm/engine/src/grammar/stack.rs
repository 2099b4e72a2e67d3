//! The arrays and objects that are open, shared between all ways in which the text so far can be understood.
//!
//! A stack is the number of its top frame, which knows the frame below. Equal stacks are the same number, so that ways that have
//! become the same are found out at once. The last frames made can be taken back.

use alloc::vec::Vec;

use super::machine::Way;
use super::rule::RuleId;
use crate::Result;
use crate::budget::Budget;

/// The most frames at a time.
const FRAMES_MAX: usize = 8192;
/// Places to look frames up in; a power of two above `FRAMES_MAX`.
const SLOTS: usize = 2 * FRAMES_MAX;

/// A stack: its top frame.
pub type StackId = u16;
/// The stack without frames.
pub const EMPTY: StackId = 0;

/// Where to go on when the value on top of it is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The rule of the array or object.
    pub rule: RuleId,
    /// How far it is: its item or member.
    pub at: u32,
    /// The stack below.
    pub below: StackId,
    /// Frames on top of each other, this one included.
    pub depth: u8,
}

/// All frames.
#[derive(Debug)]
pub struct Stacks {
    /// The first stands for the empty stack.
    frames: Vec<Frame>,
    /// Frames by their content: open addressing. 0: none.
    slots: Vec<StackId>,
    renumbered: Vec<StackId>,
}

impl Stacks {
    /// Allocates for all that there may be.
    pub fn new(budget: &mut Budget) -> Result<Self> {
        let mut frames = budget.reserve(FRAMES_MAX)?;
        frames.push(Frame::default());
        let renumbered = budget.filled(EMPTY, FRAMES_MAX)?;
        Ok(Stacks { frames, slots: budget.filled(0, SLOTS)?, renumbered })
    }

    /// The frame on top of `stack`; none of the empty one.
    pub fn top(&self, stack: StackId) -> Option<Frame> {
        self.frames.get(usize::from(stack)).filter(|_| stack != EMPTY).copied()
    }

    /// Frames in `stack`.
    pub fn depth(&self, stack: StackId) -> u8 {
        self.frames.get(usize::from(stack)).map_or(0, |frame| frame.depth)
    }

    /// Puts a frame onto a stack; none if there are too many frames.
    pub fn push(&mut self, rule: RuleId, at: u32, below: StackId) -> Option<StackId> {
        let frame = Frame { rule, at, below, depth: self.depth(below).saturating_add(1) };
        let slot = self.find_slot(&frame)?;
        let found = self.slots.get(slot).copied()?;
        if found != 0 {
            return Some(found);
        }
        if self.frames.len() == FRAMES_MAX {
            return None;
        }
        let stack = self.frames.len() as StackId;
        self.frames.push(frame);
        *self.slots.get_mut(slot)? = stack;
        Some(stack)
    }

    /// The slot that holds an equal frame, or else is free for it.
    fn find_slot(&self, frame: &Frame) -> Option<usize> {
        let key = u64::from(frame.rule) << 48 ^ u64::from(frame.below) << 32 ^ u64::from(frame.at);
        let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let start = (mixed >> 32) as usize;
        (0..SLOTS).map(|step| start.wrapping_add(step) % SLOTS).find(|slot| {
            let held = self.slots.get(*slot).copied().unwrap_or_default();
            held == 0 || self.frames.get(usize::from(held)) == Some(frame)
        })
    }

    /// How many frames there are, for [`Stacks::truncate`].
    pub fn mark(&self) -> usize {
        self.frames.len()
    }

    /// Takes back the frames made since `mark`.
    pub fn truncate(&mut self, mark: usize) {
        while self.frames.len() > mark.max(1) {
            let last = self.frames.len() as StackId - 1;
            let frame = self.top(last).unwrap_or_default();
            // The last frame that was entered ends its chain of slots, so that the others are still found.
            if let Some(slot) = self.find_slot(&frame).and_then(|slot| self.slots.get_mut(slot)) {
                *slot = 0;
            }
            self.frames.pop();
        }
    }

    /// Drops all frames that none of `ways` holds, and renumbers their stacks.
    pub fn keep(&mut self, ways: &mut [Way]) {
        let count = self.frames.len();
        let marks = self.renumbered.get_mut(..count).unwrap_or_default();
        marks.fill(EMPTY);
        for way in ways.iter() {
            let mut stack = way.stack;
            while let Some(mark) = marks.get_mut(usize::from(stack)).filter(|_| stack != EMPTY) {
                if *mark != EMPTY {
                    break;
                }
                *mark = StackId::MAX;
                stack = self.frames.get(usize::from(stack)).map_or(EMPTY, |frame| frame.below);
            }
        }
        self.slots.fill(0);
        let mut kept = 1;
        for index in 1..count {
            if self.renumbered.get(index) != Some(&StackId::MAX) {
                continue;
            }
            let Some(mut frame) = self.frames.get(index).copied() else { continue };
            // Frames below were made, and so renumbered, before.
            frame.below = self.number(frame.below);
            if let Some(place) = self.frames.get_mut(kept) {
                *place = frame;
            }
            if let Some(number) = self.renumbered.get_mut(index) {
                *number = kept as StackId;
            }
            kept += 1;
        }
        self.frames.truncate(kept);
        for index in 1..kept {
            let frame = self.top(index as StackId).unwrap_or_default();
            if let Some(slot) = self.find_slot(&frame).and_then(|slot| self.slots.get_mut(slot)) {
                *slot = index as StackId;
            }
        }
        for way in ways {
            way.stack = self.number(way.stack);
        }
    }

    fn number(&self, stack: StackId) -> StackId {
        self.renumbered.get(usize::from(stack)).copied().filter(|_| stack != EMPTY).unwrap_or(EMPTY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stacks() -> Stacks {
        Stacks::new(&mut Budget::new(1 << 20)).unwrap()
    }

    #[test]
    fn equal_stacks_are_the_same_and_the_last_can_be_taken_back() {
        let mut s = stacks();
        let a = s.push(1, 5, EMPTY).unwrap();
        let b = s.push(2, 0, a).unwrap();
        assert_eq!((s.push(1, 5, EMPTY), s.push(2, 0, a), s.depth(b)), (Some(a), Some(b), 2));
        assert!(s.push(1, 6, EMPTY) != Some(a));
        let mark = s.mark();
        // Many, so that slots collide.
        let many: Vec<StackId> = (0..4000).map(|at| s.push(3, at, b).unwrap()).collect();
        assert_eq!(many.iter().collect::<std::collections::BTreeSet<_>>().len(), 4000);
        s.truncate(mark);
        assert_eq!((s.mark(), s.push(2, 0, a)), (mark, Some(b)));
        assert_eq!(s.push(3, 7, b), Some(many[0]), "numbers are used again");
        assert_eq!(s.top(EMPTY), None);
    }

    #[test]
    fn what_nobody_holds_is_dropped() {
        let mut s = stacks();
        let a = s.push(1, 0, EMPTY).unwrap();
        let junk = s.push(9, 9, a).unwrap();
        let b = s.push(2, 0, a).unwrap();
        s.push(9, 9, junk).unwrap();
        let c = s.push(3, 0, b).unwrap();
        let way = |stack| Way { stack, ..Way::default() };
        let mut ways = [way(c), way(b), way(EMPTY), way(c)];
        s.keep(&mut ways);
        assert_eq!(s.mark(), 4);
        let [c, b, empty, same] = ways.map(|way| way.stack);
        assert_eq!((empty, same, s.top(c).map(|frame| frame.below)), (EMPTY, c, Some(b)));
        assert_eq!(s.top(b).map(|frame| (frame.rule, frame.depth)), Some((2, 2)));
        let a = s.push(1, 0, EMPTY).unwrap();
        assert_eq!((s.push(2, 0, a), s.mark()), (Some(b), 4), "and what is kept is found");
    }

    #[test]
    fn there_is_an_end_to_frames() {
        let mut s = stacks();
        let made = (0..2 * FRAMES_MAX as u32).filter(|at| s.push(1, *at, EMPTY).is_some()).count();
        assert_eq!(made, FRAMES_MAX - 1);
        assert!(s.push(1, 0, EMPTY).is_some(), "what there is is found all the same");
    }
}
