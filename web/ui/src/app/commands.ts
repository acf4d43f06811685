import type { ComponentType } from "react";

export interface Command {
  id: string;
  label: string;
  group: string;
  words?: string;
  icon: ComponentType<{ size?: number; stroke?: number; "aria-hidden"?: boolean }>;
  run: () => void;
}
