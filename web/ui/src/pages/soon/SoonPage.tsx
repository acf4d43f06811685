import { Text } from "@mantine/core";
import { useLocation } from "wouter";
import { Frame } from "../../app/Frame";
import { pages } from "../../app/pages";

/** Stands where a page is not there yet. */
export default function SoonPage() {
  const [path] = useLocation();
  return (
    <Frame title={pages.find((p) => p.path === path)?.title ?? "Page"}>
      <Text>This page is not built yet. The HTTP API below api/v1 has what it will show.</Text>
    </Frame>
  );
}
