import { expect, test } from "vitest";
import type { StatusAlert } from "../../api/status";
import { byUrgency, distance, pageTitle } from "./home";

test("concerns lead to pages by their titles", () => {
  expect(pageTitle("/targets?health=down")).toBe("Targets");
  expect(pageTitle("/nowhere")).toBe("");
  expect(pageTitle("")).toBe("");
});

test("how far a replica is", () => {
  expect(distance(0, 0)).toBe("");
  expect(distance(0.0012, 0.0001)).toBe("1.2ms away and back, the same clock");
  expect(distance(0.002, -1.5)).toBe("2ms away and back, clock 1.5s behind");
  expect(distance(0.002, 0.03)).toBe("2ms away and back, clock 30ms ahead");
});

test("the alert that always fires is last", () => {
  const alert = (name: string, severity: string): StatusAlert => ({ name, severity, state: "firing", labels: "" });
  expect(byUrgency([alert("Watchdog", "none"), alert("Down", "critical"), alert("Slow", "")]).map((a) => a.name)).toEqual([
    "Down",
    "Slow",
    "Watchdog",
  ]);
});
