"""Results, and what people look at: tables, charts, pictures, pages."""
