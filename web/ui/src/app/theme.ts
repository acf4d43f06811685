import { type CSSVariablesResolver, createTheme, type MantineColorsTuple } from "@mantine/core";

const ink: MantineColorsTuple = [
  "#eef1fb",
  "#d9dff4",
  "#b4c0ea",
  "#8fa2e2",
  "#738ada",
  "#5a72cd",
  "#4359b8",
  "#384b9e",
  "#303f83",
  "#27346b",
];

// Cooler and calmer than Mantine's own.
const dark: MantineColorsTuple = [
  "#d3d7e0",
  "#bac0cc",
  "#9aa1b1",
  "#6b7385",
  "#444b5a",
  "#363c49",
  "#2a2f3a",
  "#1d2129",
  "#171a21",
  "#111318",
];
const gray: MantineColorsTuple = [
  "#f8f9fb",
  "#f1f3f6",
  "#e6e9ee",
  "#d9dde4",
  "#c5cbd5",
  "#a4acba",
  "#767f8f",
  "#4c5563",
  "#333b48",
  "#1f252f",
];

export const theme = createTheme({
  primaryColor: "ink",
  primaryShade: 6,
  colors: { ink, dark, gray },
  black: "#1b212b",
  defaultRadius: "sm",
  fontFamily: 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif',
  fontFamilyMonospace: 'ui-monospace, "SF Mono", SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace',
  fontSizes: { xs: "0.75rem", sm: "0.8125rem", md: "0.875rem", lg: "1rem", xl: "1.125rem" },
  lineHeights: { xs: "1.4", sm: "1.45", md: "1.5", lg: "1.5", xl: "1.5" },
  headings: {
    fontWeight: "600",
    sizes: {
      h1: { fontSize: "1.375rem", lineHeight: "1.3" },
      h2: { fontSize: "1.0625rem", lineHeight: "1.35" },
      h3: { fontSize: "0.9375rem", lineHeight: "1.4" },
    },
  },
  spacing: { xs: "0.5rem", sm: "0.75rem", md: "1rem", lg: "1.25rem", xl: "2rem" },
  cursorType: "pointer",
  respectReducedMotion: true,
  components: {
    Tooltip: { defaultProps: { openDelay: 300, withArrow: true, events: { hover: true, focus: true, touch: true } } },
    // Instead of a placeholder that no menu may hold, its first item has the focus.
    Menu: { defaultProps: { withInitialFocusPlaceholder: false } },
    Table: { defaultProps: { verticalSpacing: 6, horizontalSpacing: "sm" } },
    Checkbox: { styles: { label: { paddingInlineStart: "0.4rem" } } },
    SegmentedControl: { styles: { label: { paddingInline: "0.625rem" } } },
    Anchor: { defaultProps: { underline: "always" } },
  },
});

// Mantine's dimmed grey has too little contrast for WCAG AA.
export const variables: CSSVariablesResolver = () => ({
  variables: {},
  light: {
    "--mantine-color-body": "#ffffff",
    "--mantine-color-dimmed": "#596273",
    "--mantine-color-placeholder": "#6a7282",
    "--mantine-color-anchor": "#384b9e",
    "--mantine-color-error": "#b3261e",
  },
  dark: {
    "--mantine-color-body": "#14171d",
    "--mantine-color-dimmed": "#9aa3b5",
    "--mantine-color-placeholder": "#8a92a3",
    "--mantine-color-anchor": "#9db0f2",
    "--mantine-color-error": "#ff9087",
  },
});
