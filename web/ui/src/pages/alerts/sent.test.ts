import { expect, test } from "vitest";
import type { ManagedAlert } from "../../api/alertmanager";
import { type Notification, sentIndex, toldOf } from "./sent";

const alert = { fingerprint: "f" } as ManagedAlert;

function notification(more: Partial<Notification>): Notification {
  return {
    group_key: "{}",
    receiver: "team",
    integration: "slack",
    index: 0,
    firing: [],
    resolved: [],
    waiting: [],
    muted_by: [],
    group_wait_seconds: 30,
    group_interval_seconds: 300,
    ...more,
  };
}

const of = (more: Partial<Notification>, ...others: Notification[]) => {
  const n = notification(more);
  return toldOf(n, [n, ...others], alert);
};

test("who sent it, when and to whom", () => {
  const sent = { firing: ["f"], sent_at: "2026-01-01T00:00:00Z" };
  expect(of({ ...sent, sent_by: "b" })).toEqual({ what: "Sent to team (slack)", at: sent.sent_at, next: "by replica b" });
  expect(of(sent)?.next).toBe("by a replica that does not say its name");
  expect(of({ ...sent, index: 1 }, notification({}))?.what).toBe("Sent to team (slack 2)");
  expect(of(sent, notification({ integration: "email" }))?.what).toBe("Sent to team (slack)");
});

test("why it was not sent yet", () => {
  expect(of({ waiting: ["f"] })).toEqual({ what: "Not sent to team (slack) yet", next: "it waits for group_wait, 30s" });
  expect(of({ waiting: ["f"], sent_at: "x", firing: ["other"] })?.next).toBe("it waits for group_interval, 5m");
  expect(of({ waiting: ["f"], muted_by: ["night"] })?.next).toBe("muted by the time interval night");
  expect(of({ waiting: ["f"], resolved: ["f"], sent_at: "x", sent_by: "b" })).toEqual({
    what: "team (slack) was told that it is resolved",
    at: "x",
    next: "by replica b; it waits for group_interval, 5m",
  });
  // The failure is told beside it, and silences are told of the alert.
  expect(of({ waiting: ["f"], failure: { error: "refused", since: "x", tries: 3 } })).toBeUndefined();
  expect(of({})).toBeUndefined();
});

test("an alert has all its notifications", () => {
  const one = notification({ firing: ["f", "g"] });
  const two = notification({ waiting: ["f"], resolved: ["f"] });
  const by = sentIndex({ notifications: [one, two], left_out: 0, elsewhere: {} });
  expect(by.get("f")).toEqual([one, two]);
  expect(by.get("g")).toEqual([one]);
  expect(sentIndex(undefined).size).toBe(0);
});
