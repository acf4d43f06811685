import { useEffect, useState } from "react";
import { humanDuration } from "../lib/duration";
import { useSettings } from "../lib/settings";
import { formatTime, type Instant, relativeTime, toMs, zoneName } from "../lib/time";

/** The current time, once a second, one timer for all. */
const listeners = new Set<(now: number) => void>();
let timer: ReturnType<typeof setInterval> | undefined;

export function useNow(): number {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    listeners.add(setNow);
    timer ??= setInterval(() => {
      if (!document.hidden) for (const l of listeners) l(Date.now());
    }, 1000);
    return () => {
      listeners.delete(setNow);
      if (listeners.size === 0) {
        clearInterval(timer);
        timer = undefined;
      }
    };
  }, []);
  return now;
}

// The hover text is the browser's own: a tooltip for each time in a long list would cost more than the list.

/** A moment in the zone that was chosen, the other one on hover. */
export function Time({ at, millis }: { at: Instant | null | undefined; millis?: boolean }) {
  const { settings } = useSettings();
  const ms = toMs(at);
  if (ms === null) return <>never</>;
  return (
    <time
      dateTime={new Date(ms).toISOString()}
      className="num"
      title={`${formatTime(ms, !settings.utc, millis)} ${zoneName(!settings.utc, ms)}`}
    >
      {formatTime(ms, settings.utc, millis)}
    </time>
  );
}

/** How long ago, ticking; the moment on hover. */
export function Ago({ at, none = "never" }: { at: Instant | null | undefined; none?: string }) {
  const { settings } = useSettings();
  const now = useNow();
  const ms = toMs(at);
  if (ms === null) return <>{none}</>;
  return (
    <time dateTime={new Date(ms).toISOString()} className="num" title={`${formatTime(ms, settings.utc)} ${zoneName(settings.utc, ms)}`}>
      {relativeTime(ms, now)}
    </time>
  );
}

/** For how long by now, ticking; the moment on hover. */
export function Lasting({ since, none = "unknown" }: { since: Instant | null | undefined; none?: string }) {
  const { settings } = useSettings();
  const now = useNow();
  const ms = toMs(since);
  if (ms === null) return <>{none}</>;
  return (
    <time
      dateTime={new Date(ms).toISOString()}
      className="num"
      title={`since ${formatTime(ms, settings.utc)} ${zoneName(settings.utc, ms)}`}
    >
      {humanDuration(Math.max(0, Math.floor((now - ms) / 1000) * 1000))}
    </time>
  );
}
