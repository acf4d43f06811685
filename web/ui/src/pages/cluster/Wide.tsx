import { useElementSize } from "@mantine/hooks";
import type { ReactNode } from "react";

/** Draws in pixels of the width that there is, so that text has its size on every screen. */
export function Wide({ children }: { children: (width: number) => ReactNode }) {
  const { ref, width } = useElementSize<HTMLDivElement>();
  return <div ref={ref}>{width > 0 && children(Math.floor(width))}</div>;
}
