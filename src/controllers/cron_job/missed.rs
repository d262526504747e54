//! Which time of a schedule is due, and how many were missed (`mostRecentScheduleTime`).

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::CronJob;

use super::positive;
use crate::api::cron::Schedule;

/// More missed times than this are worth a warning.
const MANY: i64 = 100;
/// Clocks differ a little: a Job is made so long after its time.
const LATER: SignedDuration = SignedDuration::from_millis(100);

/// How many times were missed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Missed {
    /// None.
    None,
    /// At least one.
    Few,
    /// More than a hundred.
    Many,
}

/// What is due.
#[derive(Debug, PartialEq)]
pub struct Due {
    /// From when on times were looked for.
    pub since: Timestamp,
    /// The most recent time; `None` when there is none until now.
    pub time: Option<Timestamp>,
    /// How many were missed.
    pub missed: Missed,
}

/// The most recent time until now. With `from_deadline` nothing before `startingDeadlineSeconds` ago counts.
///
/// # Errors
/// When the schedule never comes.
pub fn most_recent(
    cron_job: &CronJob,
    now: Timestamp,
    schedule: &Schedule,
    zone: &TimeZone,
    from_deadline: bool,
) -> Result<Due, String> {
    const NEVER: &str = "time difference between two schedules is less than 1 second";
    let created = cron_job.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let last = cron_job.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
    let mut since = last.map_or(created, |time| time.0);
    let deadline = cron_job.spec.as_ref().and_then(|spec| spec.starting_deadline_seconds).filter(|_| from_deadline);
    if let Some(seconds) = deadline {
        let earliest = now.saturating_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
        since = since.max(earliest);
    }
    let first = schedule.next(since, zone).ok_or(NEVER)?;
    if now < first {
        return Ok(Due { since, time: None, missed: Missed::None });
    }
    let second = schedule.next(first, zone).ok_or(NEVER)?;
    if now < second {
        return Ok(Due { since, time: Some(first), missed: Missed::None });
    }
    let between = second.duration_since(first).as_secs().max(1);
    let count = now.duration_since(first).as_secs() / between + 1;
    // Not all of them are looked at: go back from the estimate by one, and on from there.
    let back = SignedDuration::from_secs((count - 2).saturating_mul(between));
    let mut time = None;
    let mut next = schedule.next(first.saturating_add(back).unwrap_or(first), zone);
    while let Some(at) = next.filter(|at| *at <= now) {
        time = Some(at);
        next = schedule.next(at, zone);
    }
    Ok(Due { since, time, missed: if count > MANY { Missed::Many } else { Missed::Few } })
}

/// How long to wait for the next time (`nextScheduleTimeDuration`); `None` when there is none.
pub fn wait(cron_job: &CronJob, now: Timestamp, schedule: &Schedule, zone: &TimeZone) -> Option<Duration> {
    let from = match most_recent(cron_job, now, schedule, zone, false) {
        Ok(Due { time: Some(time), .. }) => time,
        Ok(Due { since, missed: Missed::None, .. }) => since,
        _ => now,
    };
    let next = schedule.next(from, zone)?;
    Some(positive(next.duration_since(now).saturating_add(LATER)))
}
