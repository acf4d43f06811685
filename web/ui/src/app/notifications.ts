// What the server has to tell whoever is there: a reload that failed, a shutdown. Live, and by asking now and then where that is not to be had.

import { useEffect, useState } from "react";
import { apiURL, requestPrometheus } from "../api/client";

export interface Notification {
  text: string;
  date: string;
  active: boolean;
}

/** The list after one more message: what is not active any more goes, what was there already stays where it is. */
export function told(list: Notification[], n: Notification): Notification[] {
  const there = list.some((o) => o.text === n.text);
  if (!n.active) return there ? list.filter((o) => o.text !== n.text) : list;
  return there ? list.map((o) => (o.text === n.text ? n : o)) : [...list, n];
}

const askEvery = 30_000;

export function useNotifications(): Notification[] {
  const [list, setList] = useState<Notification[]>([]);
  useEffect(() => {
    let timer: ReturnType<typeof setInterval> | undefined;
    const stop = new AbortController();
    const ask = () =>
      requestPrometheus<Notification[]>("notifications", { signal: stop.signal }).then(
        (a) => setList(a.data),
        () => {}, // The shell says so where nobody answers.
      );
    const live = new EventSource(apiURL("api/v1/notifications/live"));
    // Each connection begins with all that holds.
    live.onopen = () => setList([]);
    live.onmessage = (e) => {
      try {
        const n = JSON.parse(e.data as string) as Notification;
        setList((old) => told(old, n));
      } catch {
        // No message of this kind.
      }
    };
    live.onerror = () => {
      // The browser tries again by itself, but not where too many listen.
      if (live.readyState !== EventSource.CLOSED || timer) return;
      void ask();
      timer = setInterval(() => void ask(), askEvery);
    };
    return () => {
      live.close();
      clearInterval(timer);
      stop.abort();
    };
  }, []);
  return list;
}
