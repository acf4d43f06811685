import type { StatusAlert, StatusMember } from "../../api/status";
import { pages } from "../../app/pages";
import type { Kind } from "../../components/Notice";
import { humanDuration } from "../../lib/duration";

/** The title of the page at a path with or without a question, "" where there is none. */
export function pageTitle(path: string): string {
  const bare = path.split("?")[0];
  return pages.find((p) => p.path === bare)?.title ?? "";
}

export const memberKinds: Record<StatusMember["state"], Kind> = { alive: "well", stopped: "quiet", gone: "bad" };

/** How far another replica is in time, both of the way and of its clock; "" for this one, and where it is not measured. */
export function distance(rttSeconds: number, skewSeconds: number): string {
  if (rttSeconds === 0) return "";
  const skew = Math.abs(skewSeconds);
  const clock = skew < 0.0005 ? "the same clock" : `clock ${humanDuration(skew * 1000)} ${skewSeconds > 0 ? "ahead" : "behind"}`;
  return `${humanDuration(rttSeconds * 1000)} away and back, ${clock}`;
}

/** What is nobody's business last: severity none is the custom for an alert that always fires, to prove that alerts get through. */
export function byUrgency(alerts: StatusAlert[]): StatusAlert[] {
  return [...alerts.filter((a) => a.severity !== "none"), ...alerts.filter((a) => a.severity === "none")];
}
